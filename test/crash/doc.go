// Package crash tests that what the daemon promises holds when it is killed, again and again, at random moments.
package crash
