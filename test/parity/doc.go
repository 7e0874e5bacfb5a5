// Package parity gives the same commands to docker's command line against cradle and against Debian's dockerd, and
// compares exit codes and outputs. What may differ is listed, with its reason, in docs/differences.md, and nothing
// else may: a difference that is not listed fails the test, and so does a listed one that has gone.
package parity
