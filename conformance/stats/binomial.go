package stats

import (
	"fmt"
	"math/big"
)

// atMost returns P(X <= x) for X binomial with n trials of probability p.
func atMost(x, n int, p *big.Float) *big.Float {
	if x >= n {
		return num(1)
	}
	q := zero().Sub(num(1), p)
	// The term for k = 0, and from each the next:
	// C(n,k+1) p^(k+1) q^(n-k-1) = C(n,k) p^k q^(n-k) * (n-k)/(k+1) * p/q.
	term := power(q, n)
	sum := zero().Set(term)
	for k := 0; k < x; k++ {
		term.Mul(term, num(float64(n-k)))
		term.Quo(term, num(float64(k+1)))
		term.Mul(term, p)
		term.Quo(term, q)
		sum.Add(sum, term)
	}
	return sum
}

// AtMost returns P(X <= x) for X binomial with n trials of probability p.
func AtMost(x, n int, p float64) float64 {
	if x < 0 {
		return 0
	}
	if p <= 0 {
		return 1
	}
	if p >= 1 {
		if x >= n {
			return 1
		}
		return 0
	}
	return float(atMost(x, n, num(p)))
}

// UpperBound returns the one-sided Clopper-Pearson upper bound on the rate
// after x events in n trials, with confidence 1 - alpha: the p for which
// P(X <= x) = alpha (Clopper and Pearson, Biometrika 26, 1934). It is 1 when
// nothing was tried or everything happened.
func UpperBound(x, n int, alpha float64) float64 {
	if n <= 0 || x >= n {
		return 1
	}
	if x < 0 {
		x = 0
	}
	a := num(alpha)
	lo, hi := num(0), num(1)
	for range 80 {
		mid := zero().Add(lo, hi)
		mid.Quo(mid, num(2))
		if atMost(x, n, mid).Cmp(a) > 0 {
			lo = mid
		} else {
			hi = mid
		}
	}
	return float(hi)
}

// Keeps reports whether the plan (n, c) keeps its promise: when the rate is
// margin or more, at most alpha of replays pass.
func Keeps(n, c int, margin, alpha float64) bool {
	return n > 0 && c >= 0 && c < n && margin > 0 && margin < 1 && atMost(c, n, num(margin)).Cmp(num(alpha)) <= 0
}

// SmallestN returns the smallest n for which the plan (n, c) keeps its
// promise. It is 299 for c = 0, margin 1 % and alpha 5 %.
func SmallestN(c int, margin, alpha float64) (int, error) {
	if !(margin > 0 && margin < 1) || !(alpha > 0 && alpha < 1) || c < 0 {
		return 0, fmt.Errorf("no plan for margin %v, alpha %v and %d allowed: margin and alpha must be between 0 and 1", margin, alpha, c)
	}
	lo, hi := c, c+1 // lo does not keep it
	for !Keeps(hi, c, margin, alpha) {
		lo, hi = hi, hi*2
		if hi > 1<<26 {
			return 0, fmt.Errorf("a plan for margin %v and alpha %v needs more than %d cases", margin, alpha, hi)
		}
	}
	for hi-lo > 1 {
		if mid := (lo + hi) / 2; Keeps(mid, c, margin, alpha) {
			hi = mid
		} else {
			lo = mid
		}
	}
	return hi, nil
}

// Detectable returns the smallest rate that the plan (n, c) refuses with
// probability 1 - beta or more.
func Detectable(n, c int, beta float64) float64 { return UpperBound(c, n, beta) }

// LowerBound returns the one-sided Clopper-Pearson lower bound on the rate
// after x events in n trials, with confidence 1 - alpha: the p for which
// P(X >= x) = alpha.
func LowerBound(x, n int, alpha float64) float64 {
	if n <= 0 || x <= 0 {
		return 0
	}
	x = min(x, n)
	confidence := sub(num(1), num(alpha)) // P(X <= x-1)
	lo, hi := num(0), num(1)
	for range 80 {
		mid := quo(add(lo, hi), num(2))
		if atMost(x-1, n, mid).Cmp(confidence) > 0 {
			lo = mid
		} else {
			hi = mid
		}
	}
	return float(lo)
}

// Interval returns the two-sided Clopper-Pearson interval of confidence
// 1 - alpha.
func Interval(x, n int, alpha float64) (lower, upper float64) {
	return LowerBound(x, n, alpha/2), UpperBound(x, n, alpha/2)
}

// RateP is the exact p of the null hypothesis that the rate is margin or more,
// after x events in n trials: a small one speaks for the environment. Without
// trials it is 1.
func RateP(x, n int, margin float64) float64 {
	if n <= 0 || x >= n {
		return 1
	}
	return AtMost(x, n, margin)
}

// BinomialPlan states the plan (n, c).
func BinomialPlan(n, c int, margin, alpha, beta float64) Plan {
	return Plan{Margin: margin, Alpha: alpha, Beta: beta, N: n, Unseen: Detectable(n, c, beta)}
}

// maxAllowed bounds the search for a plan.
const maxAllowed = 200

// SmallestPlan returns the smallest plan (n, c) that certifies a rate of
// margin with probability alpha at most, and a benign rate with probability
// 1 - beta at least. An environment is hardly ever without any flip, so c = 0
// refuses good ones too often.
func SmallestPlan(benign, margin, alpha, beta float64) (n, c int, err error) {
	if err := checkRates(alpha, beta); err != nil {
		return 0, 0, err
	}
	if !(benign >= 0 && benign < margin) {
		return 0, 0, fmt.Errorf("no plan tells a benign rate of %v from a margin of %v: it must be smaller", benign, margin)
	}
	for c := range maxAllowed + 1 {
		n, err := SmallestN(c, margin, alpha)
		if err != nil {
			return 0, 0, err
		}
		if AtMost(c, n, benign) >= 1-beta {
			return n, c, nil
		}
	}
	return 0, 0, fmt.Errorf("telling a rate of %v from %v with alpha %v and beta %v needs more than %d allowed flips", benign, margin, alpha, beta, maxAllowed)
}
