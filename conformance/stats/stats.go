// Package stats is numbers only: exact binomial bounds and acceptance plans.
//
// Everything is computed with arbitrary-precision arithmetic of fixed size,
// so that the same question has the same answer, to the last digit that is
// shown, on every machine: hardware differs in fused multiply-add and in its
// exponentials.
package stats

import (
	"fmt"
	"math/big"
	"strconv"
)

// prec is the precision of all computations in bits. Results are shown with 9
// significant digits, 30 bits.
const prec = 192

func num(x float64) *big.Float { return new(big.Float).SetPrec(prec).SetFloat64(x) }

func zero() *big.Float { return new(big.Float).SetPrec(prec) }

// power returns x^n.
func power(x *big.Float, n int) *big.Float {
	result, base := num(1), zero().Set(x)
	for ; n > 0; n >>= 1 {
		if n&1 == 1 {
			result.Mul(result, base)
		}
		base.Mul(base, base)
	}
	return result
}

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
	f, _ := atMost(x, n, num(p)).Float64()
	return f
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
	f, _ := hi.Float64()
	return f
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

// Format renders a number with at most 9 significant digits, the same way
// everywhere.
func Format(x float64) string { return strconv.FormatFloat(x, 'g', 9, 64) }
