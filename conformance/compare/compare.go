// Package compare says whether an output is the same as the golden one, for
// several notions of sameness: one function each, and no statistics. Everything
// is computed in the order of the data and without fused operations, so it has
// the same bits on every machine.
package compare

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
)

// Label returns the index of the greatest element, the first of equals, and
// its margin over the next.
func Label(values []float64) (index int, margin float64, err error) {
	if len(values) < 2 {
		return 0, 0, fmt.Errorf("%d elements are not enough to choose from", len(values))
	}
	for i, v := range values {
		if math.IsNaN(v) {
			return 0, 0, fmt.Errorf("element %d is not a number", i)
		}
		if v > values[index] {
			index = i
		}
	}
	margin = math.Inf(1)
	for i, v := range values {
		if i != index {
			margin = math.Min(margin, values[index]-v)
		}
	}
	return index, margin, nil
}

// TopK returns the indices of the k greatest elements, the greatest first and
// of equals the first first, and the margin of the last of them over the next.
func TopK(values []float64, k int) (indices []int, margin float64, err error) {
	if k < 1 || k > len(values) {
		return nil, 0, fmt.Errorf("there are no %d greatest among %d elements", k, len(values))
	}
	order := make([]int, len(values))
	for i, v := range values {
		if math.IsNaN(v) {
			return nil, 0, fmt.Errorf("element %d is not a number", i)
		}
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(values[b], values[a]) })
	margin = math.Inf(1)
	if k < len(values) {
		margin = values[order[k-1]] - values[order[k]]
	}
	return order[:k], margin, nil
}

// A Ranking compares two lists of the greatest elements.
type Ranking struct {
	Missing int  // of the golden ones
	Ordered bool // the same elements in the same order
}

// Rankings compares two lists that TopK returned.
func Rankings(want, got []int) Ranking {
	r := Ranking{Ordered: slices.Equal(want, got)}
	for _, w := range want {
		if !slices.Contains(got, w) {
			r.Missing++
		}
	}
	return r
}

// A Divergence says how far two probability distributions are from each other.
type Divergence struct {
	Variation float64 // total variation distance: half the sum of absolute differences
	Hellinger float64
	KL        float64 // of got from want, in nats; +Inf if got excludes what want has
	JS        float64 // Jensen-Shannon, in nats; at most ln 2
}

// Probabilities compares two distributions over the same classes. Each must
// be one: not negative, and with a sum of 1 up to slack.
func Probabilities(want, got []float64, slack float64) (Divergence, error) {
	var d Divergence
	if len(want) != len(got) || len(want) == 0 {
		return d, fmt.Errorf("distributions over %d and %d classes", len(want), len(got))
	}
	for what, p := range map[string][]float64{"the reference": want, "the answer": got} {
		sum := 0.0
		for i, x := range p {
			if !(x >= 0) {
				return d, fmt.Errorf("class %d of %s has probability %v", i, what, x)
			}
			sum += x
		}
		if !(math.Abs(sum-1) <= slack) {
			return d, fmt.Errorf("the probabilities of %s add up to %v", what, sum)
		}
	}
	squares := 0.0
	for i, p := range want {
		q := got[i]
		d.Variation += math.Abs(p-q) / 2
		r := math.Sqrt(p) - math.Sqrt(q)
		squares += float64(r * r)
		m := (p + q) / 2
		if p > 0 {
			if q > 0 {
				d.KL += float64(p * ln(p/q))
			} else {
				d.KL = math.Inf(1)
			}
			d.JS += float64(p*ln(p/m)) / 2
		}
		if q > 0 {
			d.JS += float64(q*ln(q/m)) / 2
		}
	}
	d.Hellinger = math.Sqrt(squares / 2)
	d.KL, d.JS = math.Max(0, d.KL), math.Max(0, d.JS)
	return d, nil
}

// An EmbeddingDifference says how two vectors differ.
type EmbeddingDifference struct {
	Cosine float64
	Norm   float64 // of got as a share of that of want: 1 for the same, whatever is normalized
}

// Embeddings compares two vectors of the same dimension. A vector of zeros has
// no direction, so it is an error and never the same as anything.
func Embeddings(want, got []float64) (EmbeddingDifference, error) {
	var e EmbeddingDifference
	if len(want) != len(got) || len(want) == 0 {
		return e, fmt.Errorf("embeddings of %d and %d dimensions", len(want), len(got))
	}
	ww, gg, wg := 0.0, 0.0, 0.0
	for i, w := range want {
		g := got[i]
		ww += float64(w * w)
		gg += float64(g * g)
		wg += float64(w * g)
	}
	if !(ww > 0) || !(gg > 0) || math.IsInf(ww, 0) || math.IsInf(gg, 0) {
		return e, errors.New("an embedding is zero, or not finite")
	}
	e.Cosine = math.Max(-1, math.Min(1, wg/float64(math.Sqrt(ww)*math.Sqrt(gg))))
	e.Norm = math.Sqrt(gg) / math.Sqrt(ww)
	return e, nil
}

// Threshold returns 1 if the element at index is at or above the threshold,
// else 0, and its distance from it.
func Threshold(values []float64, index int, threshold float64) (decision int, distance float64, err error) {
	if index < 0 || index >= len(values) {
		return 0, 0, fmt.Errorf("there is no element %d among %d", index, len(values))
	}
	v := values[index]
	if math.IsNaN(v) {
		return 0, 0, fmt.Errorf("element %d is not a number", index)
	}
	if v >= threshold {
		decision = 1
	}
	return decision, math.Abs(v - threshold), nil
}

// A Scores summary compares two lists of one score each.
type Scores struct {
	MeanDifference float64 // got - want
	MaxAbs         float64
}

// Score compares paired scores, summed in order.
func Score(want, got []float64) (Scores, error) {
	if len(want) != len(got) || len(want) == 0 {
		return Scores{}, fmt.Errorf("%d and %d scores cannot be paired", len(want), len(got))
	}
	var s Scores
	sum := 0.0
	for i := range want {
		d := got[i] - want[i]
		if math.IsNaN(d) || math.IsInf(d, 0) {
			return Scores{}, fmt.Errorf("score %d is not finite", i)
		}
		sum += d
		s.MaxAbs = math.Max(s.MaxAbs, math.Abs(d))
	}
	s.MeanDifference = sum / float64(len(want))
	return s, nil
}
