package stats

import (
	"fmt"
	"math"
)

// A MeanTest is the outcome of a test that a mean lies within a margin.
// The values it was made from are one per case: answers to the same case are
// not independent, so whoever repeats a case averages first.
type MeanTest struct {
	Plan

	Mean          float64
	StandardError float64

	// Lower and Upper bound the mean, each with confidence 1 - Alpha. For a
	// test on one side Lower is -Inf.
	Lower, Upper float64

	P      float64 // of "the mean differs by the margin or more"
	Passed bool    // P <= Alpha

	// Beyond is the p of "the mean is within the margin": a small one shows that
	// it is not. Between the two the cases do not say.
	Beyond float64
}

// summary returns the mean of x and its standard error.
func summary(x []float64) (mean, standardError float64, err error) {
	if len(x) < 2 {
		return 0, 0, fmt.Errorf("%d cases are not enough for a mean with an error: at least 2 are needed", len(x))
	}
	sum := 0.0
	for i, v := range x {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return 0, 0, fmt.Errorf("case %d of %d is %v: a mean over it would say nothing", i, len(x), v)
		}
		sum += v
	}
	n := float64(len(x))
	mean = sum / n
	squares := 0.0
	for _, v := range x {
		d := v - mean
		squares += float64(d * d)
	}
	standardError = math.Sqrt(squares / (n - 1) / n)
	if math.IsInf(mean, 0) || math.IsInf(standardError, 0) {
		return 0, 0, fmt.Errorf("the sum of %d cases is out of range", len(x))
	}
	return mean, standardError, nil
}

// Equivalence tests that the mean of paired differences lies between -margin
// and +margin: two one-sided tests, each at level alpha (Schuirmann, Journal
// of Pharmacokinetics and Biopharmaceutics 15, 1987). x has one difference per
// case. If x does not vary at all, which a deterministic reference and
// candidate bring about, the mean is taken as known.
func Equivalence(x []float64, margin, alpha, beta float64) (MeanTest, error) {
	t, s, err := oneSided(x, margin, alpha, beta)
	if err != nil {
		return t, err
	}
	lower := tail(t.Mean, -margin, t.StandardError, s) // of "mean <= -margin"
	t.P = math.Max(t.P, lower)
	t.Lower = t.Mean - (t.Upper - t.Mean)
	t.Passed = t.P <= alpha
	t.Beyond = tail(math.Abs(t.Mean), margin, t.StandardError, s)
	return t, nil
}

// NonInferiority tests that the mean is below margin, which is what is wanted
// of a measure that is never good: a distance, a share of flips, a delay. x has
// one value per case.
func NonInferiority(x []float64, margin, alpha, beta float64) (MeanTest, error) {
	t, _, err := oneSided(x, margin, alpha, beta)
	return t, err
}

func oneSided(x []float64, margin, alpha, beta float64) (MeanTest, student, error) {
	t := MeanTest{Plan: Plan{Margin: margin, Alpha: alpha, Beta: beta, N: len(x)}}
	if err := checkRates(alpha, beta); err != nil {
		return t, student{}, err
	}
	if !(margin > 0) || math.IsInf(margin, 0) {
		return t, student{}, fmt.Errorf("margin %v is none: it must be positive, or nothing is claimed", margin)
	}
	var err error
	if t.Mean, t.StandardError, err = summary(x); err != nil {
		return t, student{}, err
	}
	s := newStudent(len(x) - 1)
	critical := s.quantile(alpha)
	t.P = tail(margin, t.Mean, t.StandardError, s)
	t.Beyond = tail(t.Mean, margin, t.StandardError, s)
	t.Lower, t.Upper = math.Inf(-1), t.Mean+float64(critical*t.StandardError)
	t.Passed = t.P <= alpha
	// It passes while the mean is below margin - critical*error. A true mean
	// that lies a further quantile(beta) errors above that is refused with
	// probability 1 - beta.
	power := 0.0
	switch {
	case beta < 0.5:
		power = s.quantile(beta)
	case beta > 0.5:
		power = -s.quantile(1 - beta)
	}
	t.Unseen = math.Max(0, margin-float64(critical*t.StandardError)+float64(power*t.StandardError))
	return t, s, nil
}

// tail returns P(T > (a-b)/standardError).
func tail(a, b, standardError float64, s student) float64 {
	if standardError > 0 {
		if t := (a - b) / standardError; !math.IsInf(t, 0) {
			return s.above(t)
		}
	}
	if a > b {
		return 0
	}
	return 1
}

// SmallestNForMean returns how many cases an equivalence test needs to pass
// with probability 1 - beta when there is no difference, if single cases
// deviate by sd: the smallest n with (t(1-alpha) + t(1-beta/2)) * sd/sqrt(n) <=
// margin (Chow and Liu, "Design and Analysis of Bioavailability and
// Bioequivalence Studies", with t in the place of the normal distribution).
func SmallestNForMean(sd, margin, alpha, beta float64) (int, error) {
	if err := checkRates(alpha, beta); err != nil {
		return 0, err
	}
	if !(margin > 0) || !(sd >= 0) || math.IsInf(sd, 0) {
		return 0, fmt.Errorf("no plan for a deviation of %v and a margin of %v", sd, margin)
	}
	enough := func(n int) bool {
		s := newStudent(n - 1)
		return float64((s.quantile(alpha)+s.quantile(beta/2))*sd)/math.Sqrt(float64(n)) <= margin
	}
	lo, hi := 1, 2
	for !enough(hi) {
		lo, hi = hi, hi*2
		if hi > 1<<20 {
			return 0, fmt.Errorf("a margin of %v with a deviation of %v needs more than %d cases: widen the margin", margin, sd, hi)
		}
	}
	for hi-lo > 1 {
		if mid := (lo + hi) / 2; enough(mid) {
			hi = mid
		} else {
			lo = mid
		}
	}
	return hi, nil
}
