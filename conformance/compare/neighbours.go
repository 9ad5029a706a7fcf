package compare

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// Neighbours finds the nearest of a list of vectors, by the cosine of the angle.
// It is not safe for concurrent use.
type Neighbours struct {
	dimension int
	units     [][]float64 // of length one
	same      []int       // the first vector with the same direction as each
	cosines   []float64   // of the last question
}

// NewNeighbours makes the list. All vectors have the same dimension, and a
// direction.
func NewNeighbours(vectors [][]float64) (*Neighbours, error) {
	if len(vectors) < 2 {
		return nil, fmt.Errorf("%d vectors: which is the nearest is no question", len(vectors))
	}
	n := &Neighbours{dimension: len(vectors[0]), cosines: make([]float64, len(vectors))}
	first := map[string]int{}
	var key []byte
	for i, v := range vectors {
		if len(v) != n.dimension {
			return nil, fmt.Errorf("vectors of %d and of %d dimensions", n.dimension, len(v))
		}
		u, err := unit(v)
		if err != nil {
			return nil, fmt.Errorf("vector %d: %w", i, err)
		}
		n.units = append(n.units, u)
		key = key[:0]
		for _, x := range u {
			b := math.Float64bits(x + 0) // -0 is 0
			key = append(key, byte(b), byte(b>>8), byte(b>>16), byte(b>>24), byte(b>>32), byte(b>>40), byte(b>>48), byte(b>>56))
		}
		if _, ok := first[string(key)]; !ok {
			first[string(key)] = i
		}
		n.same = append(n.same, first[string(key)])
	}
	return n, nil
}

// unit returns the vector of length one in the same direction.
func unit(v []float64) ([]float64, error) {
	squares := 0.0
	for _, x := range v {
		squares += float64(x * x)
	}
	if !(squares > 0) || math.IsInf(squares, 0) {
		return nil, errors.New("it is zero, or not finite, and has no direction")
	}
	length := math.Sqrt(squares)
	u := make([]float64, len(v))
	for i, x := range v {
		u[i] = x / length
	}
	return u, nil
}

// A Neighbourhood is what lies around a vector.
type Neighbourhood struct {
	// Nearest is the index of the nearest vector; of several in the same
	// direction the first, so that copies are no other answer.
	Nearest int

	// Lead is by how much its cosine is above that of the nearest one in another
	// direction, and Apart the distance between the two as vectors of length one;
	// +Inf and 0 if there is no other. A vector that moves by m, at length one,
	// keeps its nearest as long as Lead > m * Apart (Cauchy and Schwarz).
	Lead, Apart float64

	Top []int // the k nearest, the nearest first
}

// Around returns the neighbourhood of a vector, with its k nearest. The vector
// at index without is left out: the vector's own, or -1.
func (n *Neighbours) Around(v []float64, k, without int) (Neighbourhood, error) {
	h := Neighbourhood{Nearest: -1, Lead: math.Inf(1)}
	if len(v) != n.dimension {
		return h, fmt.Errorf("a vector of %d dimensions among those of %d", len(v), n.dimension)
	}
	u, err := unit(v)
	if err != nil {
		return h, err
	}
	n.dots(u)
	other := -1
	for i, x := range n.cosines {
		if i != without && (h.Nearest < 0 || x > n.cosines[h.Nearest]) {
			h.Nearest = i
		}
	}
	if h.Nearest < 0 {
		return h, errors.New("there is no other vector")
	}
	for i, x := range n.cosines {
		if i != without && n.same[i] != n.same[h.Nearest] && (other < 0 || x > n.cosines[other]) {
			other = i
		}
	}
	if other >= 0 {
		h.Lead = n.cosines[h.Nearest] - n.cosines[other]
		squares := 0.0
		for i, x := range n.units[h.Nearest] {
			d := x - n.units[other][i]
			squares += float64(d * d)
		}
		h.Apart = math.Sqrt(squares)
	}
	h.Top = n.top(k, without)
	h.Nearest = n.same[h.Nearest]
	return h, nil
}

// dots computes all cosines with u, four at a time: the sum of each is in the
// order of its elements, and the machine need not wait for any.
func (n *Neighbours) dots(u []float64) {
	i := 0
	for ; i+4 <= len(n.units); i += 4 {
		a, b, c, d := n.units[i][:len(u)], n.units[i+1][:len(u)], n.units[i+2][:len(u)], n.units[i+3][:len(u)]
		var s0, s1, s2, s3 float64
		for j, x := range u {
			s0 += float64(x * a[j])
			s1 += float64(x * b[j])
			s2 += float64(x * c[j])
			s3 += float64(x * d[j])
		}
		n.cosines[i], n.cosines[i+1], n.cosines[i+2], n.cosines[i+3] = s0, s1, s2, s3
	}
	for ; i < len(n.units); i++ {
		sum := 0.0
		for j, x := range u {
			sum += float64(x * n.units[i][j])
		}
		n.cosines[i] = sum
	}
}

// top returns the indices of the k greatest cosines.
func (n *Neighbours) top(k, without int) []int {
	list := make([]int, 0, k+1)
	for i, x := range n.cosines {
		if i == without || k == 0 || len(list) == k && x <= n.cosines[list[k-1]] {
			continue
		}
		at, _ := slices.BinarySearchFunc(list, x, func(j int, x float64) int {
			if n.cosines[j] >= x { // the first of equals comes first
				return -1
			}
			return 1
		})
		list = slices.Insert(list, at, i)
		list = list[:min(len(list), k)]
	}
	return list
}

// Closest returns the index of the vector that is nearest to v, and how far it
// is from it; nothing is left out.
func (n *Neighbours) Closest(v []float64) (index int, distance float64, err error) {
	if len(v) != n.dimension {
		return -1, 0, fmt.Errorf("a vector of %d dimensions among those of %d", len(v), n.dimension)
	}
	u, err := unit(v)
	if err != nil {
		return -1, 0, err
	}
	n.dots(u)
	for i, x := range n.cosines {
		if x > n.cosines[index] {
			index = i
		}
	}
	return index, math.Max(0, 1-n.cosines[index]), nil
}
