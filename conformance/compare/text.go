package compare

import (
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// A TextDifference says where and how far two texts differ.
type TextDifference struct {
	Same       bool // to the byte
	Normalized bool // after Normalize
	Divergence int  // the first code point that differs; -1 if none does
	Distance   int  // edits of code points that make one of the other
	Length     int  // code points of the longer one
}

// maxEdit bounds the product of two lengths for which the distance is computed.
const maxEdit = 64 << 20

// Texts compares what a greedy decoder said. A divergence early or late is a
// divergence: nothing is cut off.
func Texts(want, got string) (TextDifference, error) {
	d := TextDifference{Same: want == got, Divergence: -1}
	if !utf8.ValidString(want) || !utf8.ValidString(got) {
		return d, fmt.Errorf("a text is not valid UTF-8")
	}
	w, g := []rune(want), []rune(got)
	d.Length = max(len(w), len(g))
	d.Normalized = Normalize(want) == Normalize(got)
	if d.Same {
		return d, nil
	}
	for d.Divergence = 0; d.Divergence < min(len(w), len(g)) && w[d.Divergence] == g[d.Divergence]; {
		d.Divergence++
	}
	if len(w)*len(g) > maxEdit {
		return d, fmt.Errorf("texts of %d and %d code points are too long for their edit distance", len(w), len(g))
	}
	d.Distance = edits(w[d.Divergence:], g[d.Divergence:])
	return d, nil
}

// Normalize returns a text in Unicode Normalization Form C, with runs of white
// space as one space and none at the ends.
func Normalize(s string) string { return strings.Join(strings.Fields(norm.NFC.String(s)), " ") }

// edits is the Levenshtein distance.
func edits(a, b []rune) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i, x := range a {
		diagonal := row[0]
		row[0] = i + 1
		for j, y := range b {
			cost := diagonal
			if x != y {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// Extract returns the answer in a text: what the last match of the pattern has in
// its first group, normalized. Two texts that differ may give the same answer,
// and that is another question; a text without an answer gives none, and none
// is never the same as none.
func Extract(text string, pattern *regexp.Regexp) (answer string, found bool) {
	all := pattern.FindAllStringSubmatch(text, -1)
	if len(all) == 0 || len(all[len(all)-1]) < 2 {
		return "", false
	}
	return Normalize(all[len(all)-1][1]), true
}

// A TokenLogprob is a token with its logarithmic probability, and the most
// likely ones in its place.
type TokenLogprob struct {
	Token   string
	Logprob float64
	Top     map[string]float64
}

// A LogprobDifference compares the logprobs of two answers to one prompt.
type LogprobDifference struct {
	Positions  int     // compared: up to the first token that differs, where the contexts part
	Divergence int     // the first position whose tokens differ; -1 if none does
	Margin     float64 // at that position, the reference's lead of its token over the candidate's; +Inf if it does not list it
	MaxAbs     float64
	MeanAbs    float64
	TopMissing int // of the reference's most likely tokens, those that the candidate does not list
	TopTotal   int
}

// veryUnlikely is what some servers send in the place of a logprob too small to
// state.
const veryUnlikely = -9999

// Logprobs compares position by position as long as the tokens are the same:
// after that the contexts differ and the numbers say nothing of each other.
func Logprobs(want, got []TokenLogprob) (LogprobDifference, error) {
	d := LogprobDifference{Divergence: -1}
	if len(want) == 0 || len(got) == 0 {
		return d, fmt.Errorf("logprobs of %d and %d tokens: there is nothing to compare", len(want), len(got))
	}
	sum := 0.0
	for i := range min(len(want), len(got)) {
		w, g := want[i], got[i]
		for _, x := range []float64{w.Logprob, g.Logprob} {
			if !(x <= 0) || x < veryUnlikely {
				return d, fmt.Errorf("position %d has logprob %v", i, x)
			}
		}
		for token := range w.Top {
			d.TopTotal++
			if _, ok := g.Top[token]; !ok {
				d.TopMissing++
			}
		}
		if w.Token != g.Token {
			d.diverges(i, w, g.Token)
			break
		}
		d.Positions++
		abs := max(w.Logprob-g.Logprob, g.Logprob-w.Logprob)
		d.MaxAbs = max(d.MaxAbs, abs)
		sum += abs
	}
	if d.Divergence < 0 && len(want) != len(got) {
		d.diverges(min(len(want), len(got)), TokenLogprob{}, "")
	}
	if d.Positions > 0 {
		d.MeanAbs = sum / float64(d.Positions)
	}
	return d, nil
}

func (d *LogprobDifference) diverges(at int, want TokenLogprob, got string) {
	d.Divergence, d.Margin = at, inf
	if x, ok := want.Top[got]; ok {
		d.Margin = want.Logprob - x
	}
}
