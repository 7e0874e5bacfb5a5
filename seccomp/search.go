package seccomp

// group is a span with numbers in it that are excepted. Most calls that a profile treats apart stand alone among others that
// it treats alike, and testing one for equality is one instruction where a span's two ends are two.
type group struct {
	span
	but    []span // of one number each
	weight int
}

// maxExcepted bounds the exceptions of a group: they are tried in turn.
const maxExcepted = 2

// maxWeight bounds what a span weighs in the search: how many numbers it has that a kernel knows.
const maxWeight = 64

// search finds the number loaded in spans, which are ascending, and does what is said there. When a filter is installed,
// the kernel runs it for every number it knows, so the wider a span, the sooner it is found.
func (a *assembler) search(spans []span) label { return a.find(groups(spans)) }

func (a *assembler) find(g []group) label {
	if len(g) == 1 {
		next := a.decide(g[0].span)
		for _, s := range g[0].but {
			next = a.jump(opJumpEqual, s.first, a.decide(s), next)
		}
		return next
	}
	middle := balance(g)
	upper := a.find(g[middle:])
	lower := a.find(g[:middle])
	return a.jump(opJumpNotLess, g[middle].first, upper, lower)
}

// balance returns where to part groups, two at least, so that both sides weigh about the same.
func balance(g []group) int {
	total, left := 0, 0
	for _, one := range g {
		total += one.weight
	}
	for i := 1; i < len(g)-1; i++ {
		left += g[i-1].weight
		if 2*left+g[i].weight >= total {
			return i
		}
	}
	return len(g) - 1
}

// groups gathers spans. A group that is full is followed by one of the same outcome.
func groups(spans []span) []group {
	var out []group
	for i := 0; i < len(spans); {
		g := group{span: spans[i]}
		last := i // the last span with the group's outcome
		for len(g.but) < maxExcepted {
			next := resumes(spans, last, maxExcepted-len(g.but))
			if next == 0 {
				break
			}
			g.but = append(g.but, spans[last+1:next]...)
			last = next
		}
		i = last + 1
		g.weight = maxWeight
		if i < len(spans) {
			g.weight = min(maxWeight, int(spans[i].first-g.first))
		}
		out = append(out, g)
	}
	return out
}

// resumes returns where the outcome of spans[at] goes on after at most that many excepted numbers, or 0.
func resumes(spans []span, at, most int) int {
	for i := at + 1; i+1 < len(spans) && i-at <= most && spans[i+1].first == spans[i].first+1; i++ {
		if sameOutcome(spans[at], spans[i+1]) {
			return i + 1
		}
	}
	return 0
}

// sameOutcome reports whether two spans do one thing whatever the arguments.
func sameOutcome(a, b span) bool {
	return len(a.rules) == 1 && len(b.rules) == 1 && a.rules[0].ret == b.rules[0].ret
}
