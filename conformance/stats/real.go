package stats

import (
	"math"
	"math/big"
)

// prec is the precision of distribution functions in bits. Results are shown
// with 9 significant digits, 30 bits.
const prec = 192

// pi has more digits than prec needs.
const piText = "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899"

var pi, _, _ = big.ParseFloat(piText, 10, prec, big.ToNearestEven)

func num(x float64) *big.Float { return new(big.Float).SetPrec(prec).SetFloat64(x) }

func zero() *big.Float { return new(big.Float).SetPrec(prec) }

func add(x, y *big.Float) *big.Float { return zero().Add(x, y) }
func sub(x, y *big.Float) *big.Float { return zero().Sub(x, y) }
func mul(x, y *big.Float) *big.Float { return zero().Mul(x, y) }
func quo(x, y *big.Float) *big.Float { return zero().Quo(x, y) }
func root(x *big.Float) *big.Float   { return zero().Sqrt(x) }

func float(x *big.Float) float64 {
	f, _ := x.Float64()
	return f
}

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

// halfPower returns x^(n/2).
func halfPower(x *big.Float, n int) *big.Float {
	p := power(x, n/2)
	if n%2 == 1 {
		p.Mul(p, root(x))
	}
	return p
}

// negligible reports whether adding term to sum would change nothing.
func negligible(term, sum *big.Float) bool {
	return term.Sign() == 0 || term.MantExp(nil) < sum.MantExp(nil)-prec-2
}

// exp returns e^x.
func exp(x *big.Float) *big.Float {
	// e^x = (e^(x/2^k))^(2^k), with the Taylor series for the small exponent.
	k := max(0, x.MantExp(nil)+4)
	small := zero().SetMantExp(x, -k)
	sum, term := num(1), num(1)
	for n := 1; ; n++ {
		term.Mul(term, small)
		term.Quo(term, num(float64(n)))
		sum.Add(sum, term)
		if negligible(term, sum) {
			break
		}
	}
	for range k {
		sum.Mul(sum, sum)
	}
	return sum
}

// normal returns P(Z <= z) for Z standard normal. Beyond 12 standard
// deviations it is 0 or 1.
func normal(z float64) float64 {
	switch {
	case z < -12:
		return 0
	case z > 12:
		return 1
	}
	// 1/2 + phi(z) * sum of z^(2n+1) / (1*3*5*...*(2n+1))
	// (Abramowitz and Stegun 26.2.11): no term is of another sign.
	x := num(z)
	square := mul(x, x)
	sum, term := zero().Set(x), zero().Set(x)
	for n := 3.0; !negligible(term, sum); n += 2 {
		term.Mul(term, square)
		term.Quo(term, num(n))
		sum.Add(sum, term)
	}
	density := quo(exp(mul(square, num(-0.5))), root(mul(num(2), pi)))
	return float(add(num(0.5), mul(density, sum)))
}

// inverse returns the x in [lo, hi] at which the increasing f reaches p: false
// position with the correction called Illinois, which needs a dozen calls where
// halving needs sixty. Every product is rounded before it is added to.
func inverse(f func(float64) float64, p, lo, hi float64) float64 {
	low, high := f(lo)-p, f(hi)-p
	if low >= 0 {
		return lo
	}
	if high <= 0 {
		return hi
	}
	side := 0
	for range 200 {
		x := hi - float64(high*(hi-lo))/(high-low)
		if !(x > lo && x < hi) {
			if x = lo + (hi-lo)/2; x == lo || x == hi {
				break
			}
		}
		at := f(x) - p
		switch {
		case at == 0:
			return x
		case at < 0:
			lo, low = x, at
			if side < 0 {
				high /= 2
			}
			side = -1
		default:
			hi, high = x, at
			if side > 0 {
				low /= 2
			}
			side = 1
		}
		if hi-lo <= 1e-15*math.Abs(hi) {
			break
		}
	}
	return hi
}

// normalQuantile is the inverse of normal.
func normalQuantile(p float64) float64 { return inverse(normal, p, -12, 12) }

// A student is the distribution of Student's t with its normalizing constant.
type student struct {
	freedom int
	beta    *big.Float // the beta function of (freedom/2, 1/2)
}

func newStudent(freedom int) student {
	// B(1/2,1/2) = pi, B(1,1/2) = 2, B(a+1,1/2) = B(a,1/2) * a/(a+1/2).
	b, from := zero().Set(pi), 1
	if freedom%2 == 0 {
		b, from = num(2), 2
	}
	for v := from; v < freedom; v += 2 {
		b.Mul(b, num(float64(v)))
		b.Quo(b, num(float64(v+1)))
	}
	return student{freedom, b}
}

// above returns P(T > t).
func (s student) above(t float64) float64 {
	switch {
	case t == 0:
		return 0.5
	case math.IsInf(t, 1):
		return 0
	case math.IsInf(t, -1):
		return 1
	}
	square := mul(num(t), num(t))
	v := num(float64(s.freedom))
	whole := add(v, square)
	// Both tails together are the incomplete beta function I_x(v/2, 1/2) at
	// x = v/(v+t^2) (Abramowitz and Stegun 26.7.1), and I_x(a,b) is
	// x^a (1-x)^b / (a B(a,b)) * sum of (a+b)_n/(a+1)_n * x^n, of positive
	// terms; where x is large, 1 - I_(1-x)(b,a) has the shorter series.
	x, y := quo(v, whole), quo(square, whole)
	var tails *big.Float
	if x.Cmp(num(0.5)) <= 0 {
		tails = s.series(x, y, s.freedom, 1)
	} else {
		tails = sub(num(1), s.series(y, x, 1, s.freedom))
	}
	half := float(quo(tails, num(2)))
	if t < 0 {
		return 1 - half
	}
	return half
}

// series is I_x(a2/2, b2/2), with y = 1 - x.
func (s student) series(x, y *big.Float, a2, b2 int) *big.Float {
	sum, term := num(1), num(1)
	for n := 0; ; n++ {
		term.Mul(term, num(float64(a2+b2+2*n)))
		term.Quo(term, num(float64(a2+2+2*n)))
		term.Mul(term, x)
		sum.Add(sum, term)
		if negligible(term, sum) {
			break
		}
	}
	sum.Mul(sum, mul(halfPower(x, a2), halfPower(y, b2)))
	return sum.Quo(sum, mul(num(float64(a2)/2), s.beta))
}

// quantile returns the t with P(T > t) = p, for p below 1/2.
func (s student) quantile(p float64) float64 {
	hi := 1.0
	for s.above(hi) > p {
		hi *= 2
	}
	return inverse(func(t float64) float64 { return -s.above(t) }, -p, 0, hi)
}

// Above returns P(T > t) for T of Student's t distribution.
func Above(t float64, freedom int) float64 { return newStudent(freedom).above(t) }

// Critical returns the t that T exceeds with probability p, for p below 1/2.
func Critical(p float64, freedom int) float64 { return newStudent(freedom).quantile(p) }
