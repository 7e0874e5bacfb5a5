// Package repotest holds the tests of the repository itself: the direction of imports, the rules for globals and
// comments, and that what the documents name exists.
package repotest
