package front

// What a list's words are: each of them one of these or, where it ends in "=", with a value.
const (
	ListAll     = "all"
	ListQuiet   = "quiet"
	ListNoTrunc = "no-trunc"
	ListFilter  = "filter=" // and K=V
)

// psWords makes the words of a request of what follows `ps`; false where there is more to it than is done here.
func psWords(args []string, w *words) bool {
	for len(args) > 0 {
		flag, rest := args[0], args[1:]
		const filter = "--filter="
		switch {
		case flag == "-a" || flag == "--all":
			w.add(ListAll, "")
		case flag == "-q" || flag == "--quiet":
			w.add(ListQuiet, "")
		case flag == "-aq" || flag == "-qa":
			w.add(ListAll, "")
			w.add(ListQuiet, "")
		case flag == "--no-trunc":
			w.add(ListNoTrunc, "")
		case (flag == "-f" || flag == "--filter") && len(rest) > 0:
			w.add(ListFilter, rest[0])
			rest = rest[1:]
		case len(flag) > len(filter) && flag[:len(filter)] == filter:
			w.add(ListFilter, flag[len(filter):])
		default:
			return false
		}
		args = rest
	}
	return true
}

// ps lists containers: POST /cradle/v1/ps with the words as the body. The answer is 200 when there is a list.
func (c *conn) ps(args []string) (code int, done bool) {
	if !c.post("/cradle/v1/ps", "", "", "", &body{command: "ps", args: args}) {
		return 0, false
	}
	if status, _ := c.head(); status != 200 {
		return 0, false
	}
	code, end := c.records()
	if end != ended {
		return 1, true
	}
	return code, true
}
