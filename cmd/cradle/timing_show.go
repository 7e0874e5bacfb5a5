package main

import (
	"fmt"
	"html"
	"io"
	"strings"
	"time"
)

// writeTimings prints the phases as a table.
func writeTimings(w io.Writer, spans []span, way string) {
	total := totalOf(spans)
	fmt.Fprintf(w, "\n%9s %9s  %-6s  %s\n", "AT", "MS", "WHERE", "PHASE")
	for _, s := range spans {
		bar := ""
		if total > 0 {
			bar = strings.Repeat("#", int(40*s.Took/total))
		}
		fmt.Fprintln(w, strings.TrimRight(fmt.Sprintf("%9.1f %9.1f  %-6s  %-12s %s", ms(s.At), ms(s.Took), s.Where, s.Name, bar), " "))
	}
	fmt.Fprintf(w, "%9.1f %9.1f  %-6s  %s\n", ms(total), ms(total), "", "total"+inBrackets(way))
}

func inBrackets(way string) string {
	if way == "" {
		return ""
	}
	return " (" + way + ")"
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func totalOf(spans []span) time.Duration {
	if len(spans) == 0 {
		return 0
	}
	last := spans[len(spans)-1]
	return last.At + last.Took
}

// writeTimingsSVG draws the phases, one bar under the other, from left to right.
func writeTimingsSVG(w io.Writer, spans []span, way string) error {
	const row, left, width, right = 22, 130, 700, 90
	total := max(totalOf(spans), 1)
	height := row*(len(spans)+1) + 20
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", left+width+right, height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n"+`<text x="8" y="16">%.1f ms%s</text>`+"\n", ms(total), html.EscapeString(inBrackets(way)))
	for i, s := range spans {
		colour := "#4878a8"
		if s.Where == "daemon" {
			colour = "#d08040"
		}
		x, y := left+width*float64(s.At)/float64(total), row*(i+1)+8
		fmt.Fprintf(&b, `<text x="8" y="%d">%s</text><rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"/><text x="%.1f" y="%d">%.1f ms</text>`+"\n",
			y+14, html.EscapeString(s.Name), x, y+2, max(1, width*float64(s.Took)/float64(total)), row-6, colour,
			x+width*float64(s.Took)/float64(total)+4, y+14, ms(s.Took))
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}
