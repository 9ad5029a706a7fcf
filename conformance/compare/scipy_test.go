package compare

import (
	"encoding/hex"
	"encoding/json"
	"math"
	"os"
	"slices"
	"strconv"
	"testing"
)

// extended is a float64 that may be infinite, which JSON has no word for.
type extended float64

func (n *extended) UnmarshalJSON(raw []byte) error {
	v, err := strconv.ParseFloat(string(slices.DeleteFunc(raw, func(b byte) bool { return b == '"' })), 64)
	*n = extended(v)
	return err
}

// agrees compares up to a relative difference; near 0, where a difference of
// numbers that are nearly the same is what is computed, up to an absolute one.
func agrees(got float64, want extended, tolerance float64) bool {
	if math.IsInf(float64(want), 0) {
		return got == float64(want)
	}
	return math.Abs(got-float64(want)) <= tolerance*max(1, math.Abs(float64(want)))
}

// The measures are SciPy's and NumPy's; testdata/make.py made the values.
func TestSciPy(t *testing.T) {
	var values struct {
		Distributions []struct {
			P, Q                         []float64
			KL, JS, Hellinger, Variation extended
		}
		Tensors []struct {
			Datatype, Want, Got string
			ULP                 uint64
			Cosine, SNR         extended
		}
		Vectors []struct {
			A, B         []float64
			Cosine, Norm extended
		}
		Greatest []struct {
			X      []float64
			K      int
			Order  []int
			Margin extended
		}
	}
	raw, err := os.ReadFile("testdata/scipy.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &values); err != nil {
		t.Fatal(err)
	}
	if len(values.Distributions) != 16 || len(values.Tensors) != 14 || len(values.Vectors) != 3 || len(values.Greatest) != 9 {
		t.Fatalf("%d distributions, %d tensors, %d vectors, %d lists", len(values.Distributions), len(values.Tensors), len(values.Vectors), len(values.Greatest))
	}
	for _, v := range values.Distributions {
		d, err := Probabilities(v.P, v.Q, 1e-9)
		if err != nil || !agrees(d.KL, v.KL, 1e-12) || !agrees(d.JS, v.JS, 1e-12) || !agrees(d.Hellinger, v.Hellinger, 1e-12) || !agrees(d.Variation, v.Variation, 1e-12) {
			t.Errorf("%.4v and %.4v: %+v, %v; want KL %v, JS %v, Hellinger %v, variation %v", v.P, v.Q, d, err, v.KL, v.JS, v.Hellinger, v.Variation)
		}
	}
	for _, v := range values.Tensors {
		tensor := func(text string) Tensor {
			bits, err := hex.DecodeString(text)
			if err != nil {
				t.Fatal(err)
			}
			return Tensor{Name: "x", Datatype: v.Datatype, Shape: []int64{int64(len(bits) / Width(v.Datatype))}, Bits: bits}
		}
		d := Tensors(tensor(v.Want), tensor(v.Got), Tolerance{})
		if d.Fault != "" || d.Elements != 50 || d.MaxULP != v.ULP || (d.BitsDiffer > 0) != (v.ULP > 0) {
			t.Errorf("%s: %+v, want %d ulps", v.Datatype, d, v.ULP)
		}
		if !agrees(d.Cosine(), v.Cosine, 1e-14) || !agrees(d.SNR(), v.SNR, 1e-12) {
			t.Errorf("%s, %d ulps: cosine %v and SNR %v, want %v and %v", v.Datatype, v.ULP, d.Cosine(), d.SNR(), v.Cosine, v.SNR)
		}
	}
	for _, v := range values.Vectors {
		e, err := Embeddings(v.A, v.B)
		if err != nil || !agrees(e.Cosine, v.Cosine, 1e-14) || !agrees(e.Norm, v.Norm, 1e-14) {
			t.Errorf("of %d dimensions: %+v, %v; want %v and %v", len(v.A), e, err, v.Cosine, v.Norm)
		}
	}
	for _, v := range values.Greatest {
		order, margin, err := TopK(v.X, v.K)
		if err != nil || !slices.Equal(order, v.Order) || !agrees(margin, v.Margin, 0) {
			t.Errorf("%v: %v, margin %v, %v; want %v, %v", v.X, order, margin, err, v.Order, v.Margin)
		}
	}
}
