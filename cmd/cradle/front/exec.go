package front

// exec runs a command in a container: POST /cradle/v1/containers/NAME/exec with the words of the command, separated by
// zero bytes, as the body. The daemon says that it has begun with the answer 100 (the request expects it): before that
// nothing has happened, and after it an answer other than 200 says the same.
func (c *conn) exec(name string, command []string) (code int, done bool) {
	if !c.post("/cradle/v1/containers/", name, "/exec", "Expect: 100-continue\r\n", &body{command: "exec", args: command}) {
		return 0, false
	}
	if status, _ := c.head(); status != 100 {
		return 0, false
	}
	status, _ := c.head()
	end := ended
	switch status {
	case 0:
		_, end = c.lose("its answer has no end")
	case 200:
		code, end = c.records()
	default:
		return 0, false
	}
	if end != ended {
		return 1, true
	}
	return code, true
}
