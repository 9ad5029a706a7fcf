package stats

import (
	"errors"
	"fmt"
)

// Samples are answers to one prompt, of the reference and of the candidate:
// sequences of symbols, which are tokens or Unicode code points. At least two
// of each are needed. No symbol is negative.
type Samples struct {
	Want, Got [][]int32
}

// An MMDTest is the outcome of [MMD].
type MMDTest struct {
	Distance     float64   // mean over the prompts of the squared discrepancy, unbiased, so it may be negative
	ByPrompt     []float64 // the same of each prompt: what an equivalence test is made from
	P            float64   // of "both come from the same distribution"
	Alike        float64   // of "neither was drawn with an eye to the other"
	Permutations int
}

// MMD tests whether two environments draw their answers from the same
// distribution: the squared maximum mean discrepancy with the Hamming kernel
// (Gao, Liang and Guestrin, "Model Equality Testing", arXiv 2410.20247). The
// kernel of two answers is the share of positions at which they have the same
// symbol; the shorter one is continued with a symbol of its own up to the
// longest answer to that prompt, so nothing is cut off. Answers to different
// prompts have nothing in common.
//
// Two things are other than in the authors' code. Answers are permuted within
// prompts only, or a different number of answers to a prompt would look like a
// different model. And p is (1 + the number of permutations with at least this
// distance) / (1 + permutations): without the ones, p can be zero, and the test
// is not exact (Phipson and Smyth, 2010).
//
// A small p shows a difference. A large one certifies nothing: for that, give
// ByPrompt to [Clustered].
//
// Alike is the same test on the other side. Two sets of answers that are closer
// than nearly all ways to deal them out again have answers in common that were not
// drawn twice: of a shared seed, or of a store. They say nothing of what a
// candidate draws from, and ByPrompt is then too small.
func MMD(prompts []Samples, permutations int, g *Generator) (MMDTest, error) {
	t := MMDTest{Permutations: permutations}
	if len(prompts) == 0 || permutations < 19 {
		return t, errors.New("a permutation test needs prompts, and at least 19 permutations for a p of 5 %")
	}
	list := make([]*hamming, len(prompts))
	for i, s := range prompts {
		var err error
		if list[i], err = newHamming(s); err != nil {
			return t, fmt.Errorf("prompt %d: %w", i, err)
		}
	}
	mean := func(each func(i int, d float64)) float64 {
		sum := 0.0
		for i, h := range list {
			d := h.distance()
			if each != nil {
				each(i, d)
			}
			sum += d
		}
		return sum / float64(len(list))
	}
	t.ByPrompt = make([]float64, len(list))
	t.Distance = mean(func(i int, d float64) { t.ByPrompt[i] = d })
	asFar, asNear := 0, 0
	for range permutations {
		for _, h := range list {
			g.Shuffle(len(h.order), func(i, j int) { h.order[i], h.order[j] = h.order[j], h.order[i] })
		}
		d := mean(nil)
		if d >= t.Distance {
			asFar++
		}
		if d <= t.Distance {
			asNear++
		}
	}
	t.Alike = float64(1+asNear) / float64(1+permutations)
	t.P = float64(1+asFar) / float64(1+permutations)
	return t, nil
}

// A hamming holds how many positions any two answers to a prompt have in
// common. Counts are integers, so that equal partitions have equal distances
// to the bit, and ties are ties.
type hamming struct {
	same   [][]int64
	order  []int // which answers are the reference's: the first want of these
	want   int
	length int
}

func newHamming(s Samples) (*hamming, error) {
	if len(s.Want) < 2 || len(s.Got) < 2 {
		return nil, fmt.Errorf("%d answers of the reference and %d of the candidate: at least 2 of each are needed", len(s.Want), len(s.Got))
	}
	all := append(append([][]int32(nil), s.Want...), s.Got...)
	h := &hamming{want: len(s.Want)}
	for _, a := range all {
		h.length = max(h.length, len(a))
		for _, symbol := range a {
			if symbol < 0 {
				return nil, fmt.Errorf("symbol %d is negative", symbol)
			}
		}
	}
	for i, a := range all {
		row := make([]int64, len(all))
		for j, b := range all {
			same := h.length - max(len(a), len(b)) // both have ended
			for k := range min(len(a), len(b)) {
				if a[k] == b[k] {
					same++
				}
			}
			row[j] = int64(same)
		}
		h.same = append(h.same, row)
		h.order = append(h.order, i)
	}
	return h, nil
}

func (h *hamming) distance() float64 {
	if h.length == 0 {
		return 0 // all answers are empty
	}
	pairs := func(a, b []int) (sum int64) {
		for _, i := range a {
			row := h.same[i]
			for _, j := range b {
				sum += row[j]
			}
		}
		return sum
	}
	x, y := h.order[:h.want], h.order[h.want:]
	n, m, l := int64(len(x)), int64(len(y)), int64(h.length)
	// An answer is not compared with itself: the kernel is l there.
	within := float64(pairs(x, x)-n*l)/float64(n*(n-1)*l) + float64(pairs(y, y)-m*l)/float64(m*(m-1)*l)
	return within - float64(2*pairs(x, y))/float64(n*m*l)
}
