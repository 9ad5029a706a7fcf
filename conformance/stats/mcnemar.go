package stats

import "fmt"

// A PairedTest is the outcome of McNemar's test.
type PairedTest struct {
	Plan // Margin is 0: a test of difference excludes none

	Worse, Better int     // pairs that changed, by direction
	P             float64 // exact, two-sided, of "both directions are as likely"
	MidP          float64 // less conservative; for reading, never for a verdict
}

// McNemar tests whether changes go one way: of n pairs, worse went from right
// to wrong and better from wrong to right (McNemar, Psychometrika 12, 1947; the
// exact form is the sign test on the pairs that changed). Equal accuracy can
// hide many changes, so this stands beside the rate of changes and never in its
// place. Unseen is a net change as a share of all pairs.
func McNemar(worse, better, n int, alpha, beta float64) (PairedTest, error) {
	t := PairedTest{Plan: Plan{Alpha: alpha, Beta: beta, N: n}, Worse: worse, Better: better, P: 1, MidP: 1}
	if err := checkRates(alpha, beta); err != nil {
		return t, err
	}
	changed := worse + better
	if worse < 0 || better < 0 || changed > n || n == 0 {
		return t, fmt.Errorf("%d and %d changes among %d pairs", worse, better, n)
	}
	if changed == 0 {
		return t, nil // nothing can be shown, and nothing changed
	}
	few := min(worse, better)
	tail := AtMost(few, changed, 0.5)
	t.P = min(1, 2*tail)
	t.MidP = min(1, float64(2*tail)-(tail-AtMost(few-1, changed, 0.5)))
	// The most of the rarer direction that is still significant.
	critical := -1
	for 2*AtMost(critical+1, changed, 0.5) <= alpha {
		critical++
	}
	// Its share at which that is found with probability 1 - beta; if nothing
	// could be significant, all that changed could have gone unseen.
	rare := 0.0
	if critical >= 0 {
		rare = inverse(func(p float64) float64 { return -AtMost(critical, changed, p) }, -(1 - beta), 0, 0.5)
	}
	t.Unseen = float64((1-float64(2*rare))*float64(changed)) / float64(n)
	return t, nil
}
