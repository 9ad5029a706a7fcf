package stats

import (
	"fmt"
	"slices"
)

// Holm adjusts p-values of one family, so that comparing each to alpha keeps
// the probability of any false rejection at alpha (Holm, Scandinavian Journal
// of Statistics 6, 1979), whatever their dependence.
func Holm(p []float64) []float64 {
	order := make([]int, len(p))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		switch {
		case p[a] < p[b]:
			return -1
		case p[a] > p[b]:
			return 1
		}
		return a - b
	})
	adjusted := make([]float64, len(p))
	worst := 0.0
	for rank, i := range order {
		worst = max(worst, min(1, float64(len(p)-rank)*p[i]))
		adjusted[i] = worst
	}
	return adjusted
}

// DiffersFromAll is the p of "it is the same as at least one of the accepted
// references" (a composite null: several precisions are allowed). It is
// rejected only if each of them is, so it needs no correction (Berger,
// Technometrics 24, 1982). With nothing accepted it is 0: everything differs.
func DiffersFromAll(p []float64) float64 {
	worst := 0.0
	for _, x := range p {
		worst = max(worst, x)
	}
	return worst
}

// EquivalentToOne is the p of "it is equivalent to none of the accepted
// references". One of several chances to pass is a chance more, so it is
// corrected (Bonferroni). With nothing accepted it is 1.
func EquivalentToOne(p []float64) float64 {
	best := 1.0
	for _, x := range p {
		best = min(best, float64(len(p))*x)
	}
	return best
}

// A Hypothesis is one thing that a gate has to show: its p is of "it does not
// hold".
type Hypothesis struct {
	Name string
	P    float64
}

// A Gate is a family of hypotheses, all of which have to hold.
type Gate struct {
	Name       string
	Hypotheses []Hypothesis
}

// A GateOutcome is what came of a gate.
type GateOutcome struct {
	Gate

	Tested   bool      // all gates before it passed
	Passed   bool      // all its hypotheses were shown
	Adjusted []float64 // p, adjusted within the gate; nil if it was not tested
}

// FixedSequence goes through gates in their order, which was fixed before: each
// is tested at alpha, and only after all before it passed. The probability that
// anything is shown that does not hold is then alpha for all gates together,
// with Holm within gates (Maurer, Hothorn and Lehmacher, 1995). A gate without
// hypotheses shows nothing, so it does not pass.
func FixedSequence(gates []Gate, alpha float64) ([]GateOutcome, error) {
	out := make([]GateOutcome, len(gates))
	going := true
	for i, g := range gates {
		out[i] = GateOutcome{Gate: g, Tested: going}
		if !going {
			continue
		}
		p := make([]float64, len(g.Hypotheses))
		for j, h := range g.Hypotheses {
			if !(h.P >= 0 && h.P <= 1) {
				return nil, fmt.Errorf("gate %s: %s: %v is no p-value", g.Name, h.Name, h.P)
			}
			p[j] = h.P
		}
		out[i].Adjusted = Holm(p)
		out[i].Passed = len(p) > 0 && slices.Max(out[i].Adjusted) <= alpha
		going = out[i].Passed
	}
	return out, nil
}
