package front

import "os"

// exec runs a command in a container: POST /cradle/v1/containers/NAME/exec with the words of the command, separated by
// zero bytes, as the body. The daemon says that it has begun with the answer 100 (the request expects it): before that
// nothing has happened, and after it an answer other than 200 says the same.
func (c *conn) exec(name string, words []string, stdout, stderr *os.File) (code int, done bool) {
	if err := c.post("/cradle/v1/containers/"+name+"/exec", "Expect: 100-continue\r\n", words); err != nil {
		return 0, false
	}
	status, _, err := c.head()
	if err != nil || status != "100" {
		return 0, false
	}
	switch status, _, err = c.head(); {
	case err != nil:
		err = lost{err}
	case status != "200":
		return 0, false
	default:
		code, err = c.records(stdout, stderr)
	}
	if err != nil {
		stderr.WriteString(err.Error() + "\n")
		return 1, true
	}
	return code, true
}
