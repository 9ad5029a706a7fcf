// Package stats is numbers only: bounds, plans and tests of what a replay
// showed, each with what it could have missed.
//
// # The same digits everywhere
//
// A verdict is made again by others, years later, on other machines, and must
// come out the same to the byte. Hardware differs in fused multiply-add and in
// its exponentials, so distribution functions are computed with
// arbitrary-precision arithmetic of fixed size; sums of data run in the order
// of the data, with every product rounded before it is added (an explicit
// conversion forbids fusing: Go specification, "Floating-point operators");
// random numbers come from a [Generator] that is seeded by digests; and
// nothing is shown with more than 9 significant digits ([Format]).
//
// # Two kinds of tests
//
// A test of equivalence has the null hypothesis "it differs by the margin or
// more"; a small p speaks for sameness, and only such a test can certify
// ([UpperBound], [Equivalence], [NonInferiority]). A test of difference has
// the null hypothesis "it is the same"; a small p speaks against the
// environment, and a large one says nothing ([McNemar], [MMD]). Each result
// carries a [Plan], which states what could have gone unseen.
package stats

import (
	"fmt"
	"strconv"
)

// A Plan states what a test promises: the margin it is about, its error rates,
// how many independent cases it has, and what it can miss.
type Plan struct {
	Margin float64 // the effect that passing excludes, with confidence 1 - Alpha
	Alpha  float64 // probability of passing when the effect is the margin
	Beta   float64 // probability by which Unseen is stated
	N      int     // independent cases: never repeats, never elements

	// Unseen is the smallest effect that is refused with probability
	// 1 - Beta or more. Anything smaller could have gone unseen.
	Unseen float64
}

func (p Plan) String() string {
	return fmt.Sprintf("margin %s, alpha %s, n = %d; an effect below %s could have gone unseen (beta %s)",
		Format(p.Margin), Format(p.Alpha), p.N, Format(p.Unseen), Format(p.Beta))
}

// checkRates refuses error rates that are none.
func checkRates(alpha, beta float64) error {
	if !(alpha > 0 && alpha < 0.5) || !(beta > 0 && beta < 1) {
		return fmt.Errorf("alpha %v and beta %v are no error rates: alpha must be between 0 and 0.5, beta between 0 and 1", alpha, beta)
	}
	return nil
}

// Format renders a number with at most 9 significant digits, the same way
// everywhere.
func Format(x float64) string { return strconv.FormatFloat(x, 'g', 9, 64) }
