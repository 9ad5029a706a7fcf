// Package compare says whether an output is the same as the golden one, for
// several notions of sameness: one function each, and no statistics.
package compare

import (
	"encoding/binary"
	"fmt"
	"math"
)

// A Tensor is numbers with a shape. Bits are the elements as they were sent,
// in the declared type, little-endian.
type Tensor struct {
	Name     string
	Datatype string // "FP32", "FP64"
	Shape    []int64
	Bits     []byte
}

// widths are the sizes of the element types that can be compared, in bytes.
var widths = map[string]int{"FP32": 4, "FP64": 8}

// Elements returns the number of elements the shape has, or -1 if the shape
// is not one.
func Elements(shape []int64) int {
	n := int64(1)
	for _, d := range shape {
		if d < 0 || d > 1<<31 || n > 1<<31 {
			return -1
		}
		n *= d
	}
	return int(n)
}

// Values decodes the elements.
func (t Tensor) Values() ([]float64, error) {
	w, ok := widths[t.Datatype]
	if !ok {
		return nil, fmt.Errorf("tensor %s: datatype %q cannot be compared", t.Name, t.Datatype)
	}
	if n := Elements(t.Shape); n < 0 || n*w != len(t.Bits) {
		return nil, fmt.Errorf("tensor %s: %d bytes for shape %v of %s", t.Name, len(t.Bits), t.Shape, t.Datatype)
	}
	out := make([]float64, len(t.Bits)/w)
	for i := range out {
		if w == 4 {
			out[i] = float64(math.Float32frombits(binary.LittleEndian.Uint32(t.Bits[i*4:])))
		} else {
			out[i] = math.Float64frombits(binary.LittleEndian.Uint64(t.Bits[i*8:]))
		}
	}
	return out, nil
}

// A Tolerance bounds a numeric difference: |got - want| <= Absolute +
// Relative*|want|.
type Tolerance struct {
	Absolute, Relative float64
}

// A Difference is what Tensors found.
type Difference struct {
	// Broken says why the tensors cannot be compared at all: another name,
	// type or shape, or numbers that are not finite. It is never a pass.
	Broken string

	Elements   int     // that were compared: all of them
	BitsDiffer int     // not the same bits
	Exceeding  int     // over the tolerance
	MaxAbs     float64 // largest |got - want|
	MaxScaled  float64 // largest |got - want| as a share of its tolerance; > 1 is over it
	MaxULP     uint64  // largest distance in units in the last place of the declared type
}

// Tensors compares every element.
func Tensors(want, got Tensor, tol Tolerance) Difference {
	broken := func(format string, a ...any) Difference {
		return Difference{Broken: fmt.Sprintf(format, a...)}
	}
	switch {
	case got.Name != want.Name:
		return broken("output %q in the place of %q", got.Name, want.Name)
	case got.Datatype != want.Datatype:
		return broken("output %s is %s, not %s", want.Name, got.Datatype, want.Datatype)
	case !sameShape(want.Shape, got.Shape):
		return broken("output %s has shape %v, not %v", want.Name, got.Shape, want.Shape)
	}
	w, err := want.Values()
	if err != nil {
		return broken("reference: %v", err)
	}
	g, err := got.Values()
	if err != nil {
		return broken("%v", err)
	}
	if len(w) == 0 {
		return broken("output %s has no elements", want.Name)
	}
	width := widths[want.Datatype]
	d := Difference{Elements: len(w)}
	for i := range w {
		if math.IsNaN(g[i]) || math.IsInf(g[i], 0) {
			return broken("element %d of output %s is %v", i, want.Name, g[i])
		}
		if math.IsNaN(w[i]) || math.IsInf(w[i], 0) {
			return broken("element %d of the reference's output %s is %v", i, want.Name, w[i])
		}
		if string(want.Bits[i*width:(i+1)*width]) != string(got.Bits[i*width:(i+1)*width]) {
			d.BitsDiffer++
		}
		abs := math.Abs(g[i] - w[i])
		// The conversion forbids the compiler to fuse multiply and add, which
		// some machines have and others do not.
		allowed := tol.Absolute + float64(tol.Relative*math.Abs(w[i]))
		d.MaxAbs = math.Max(d.MaxAbs, abs)
		switch {
		case abs > allowed:
			d.Exceeding++
			fallthrough
		case abs > 0:
			if allowed > 0 {
				d.MaxScaled = math.Max(d.MaxScaled, abs/allowed)
			} else {
				d.MaxScaled = math.MaxFloat64 // no difference is allowed
			}
		}
		d.MaxULP = max(d.MaxULP, ulps(want.Datatype, w[i], g[i]))
	}
	return d
}

func sameShape(a, b []int64) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// ulps is the number of representable values from a to b in the type.
func ulps(datatype string, a, b float64) uint64 {
	var x, y int64
	if datatype == "FP32" {
		x, y = ordered(int64(int32(math.Float32bits(float32(a)))), math.MinInt32), ordered(int64(int32(math.Float32bits(float32(b)))), math.MinInt32)
	} else {
		x, y = ordered(int64(math.Float64bits(a)), math.MinInt64), ordered(int64(math.Float64bits(b)), math.MinInt64)
	}
	if x > y {
		x, y = y, x
	}
	return uint64(y) - uint64(x)
}

// ordered maps the bits of a float to integers in the order of the floats.
func ordered(bits, lowest int64) int64 {
	if bits < 0 {
		return lowest - bits
	}
	return bits
}

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
