package compare

import (
	"encoding/binary"
	"math"
	"os/exec"
	"strings"
	"testing"
)

func f32(name string, values ...float32) Tensor {
	t := Tensor{Name: name, Datatype: "FP32", Shape: []int64{1, int64(len(values))}}
	for _, v := range values {
		t.Bits = binary.LittleEndian.AppendUint32(t.Bits, math.Float32bits(v))
	}
	return t
}

func TestTensors(t *testing.T) {
	tol := Tolerance{Absolute: 1e-5, Relative: 1e-6}
	next := math.Nextafter32(0.5, 1)
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	d := Tensors(f32("p", 0.5, 0.25), f32("p", next, 0.25), tol)
	if d.Broken != "" || d.Elements != 2 || d.BitsDiffer != 1 || d.Exceeding != 0 || d.MaxULP != 1 || d.MaxScaled <= 0 || d.MaxScaled >= 1 {
		t.Errorf("one ulp: %+v", d)
	}
	if d := Tensors(f32("p", 0.5), f32("p", 0.6), tol); d.Exceeding != 1 || d.MaxScaled <= 1 {
		t.Errorf("a large difference: %+v", d)
	}
	// The last element counts as much as the first.
	if d := Tensors(f32("p", 0, 0, 0, 1), f32("p", 0, 0, 0, 2), tol); d.Exceeding != 1 || d.Elements != 4 {
		t.Errorf("a difference at the end: %+v", d)
	}
	if d := Tensors(f32("p", 0.5), f32("p", next), Tolerance{}); d.Exceeding != 1 || d.MaxScaled <= 1 {
		t.Errorf("no tolerance: %+v", d)
	}
	short := f32("p", 1)
	short.Bits = short.Bits[:2]
	wide := f32("p", 1)
	wide.Shape = []int64{1, 1, 1}
	other := f32("p", 1)
	other.Datatype = "FP64"
	for what, got := range map[string]Tensor{
		"NaN": f32("p", nan), "Inf": f32("p", inf), "-Inf": f32("p", -inf), "another name": f32("q", 1), "another shape": f32("p", 1, 2),
		"another rank": wide, "another type": other, "too few bytes": short, "nothing": {},
	} {
		if d := Tensors(f32("p", 1), got, Tolerance{Absolute: math.MaxFloat64}); d.Broken == "" {
			t.Errorf("%s passes: %+v", what, d)
		}
	}
	if d := Tensors(f32("p", nan), f32("p", nan), tol); d.Broken == "" {
		t.Error("NaN equals NaN")
	}
	if d := Tensors(f32("p"), f32("p"), tol); d.Broken == "" {
		t.Error("nothing equals nothing")
	}
}

func TestULPs(t *testing.T) {
	for _, tc := range []struct {
		a, b float32
		want uint64
	}{{1, 1, 0}, {1, math.Nextafter32(1, 2), 1}, {0, float32(math.Copysign(0, -1)), 0}, {math.SmallestNonzeroFloat32, -math.SmallestNonzeroFloat32, 2}} {
		a, b := f32("x", tc.a), f32("x", tc.b)
		d, back := Tensors(a, b, Tolerance{}), Tensors(b, a, Tolerance{})
		if d.MaxULP != tc.want || back.MaxULP != tc.want || (d.BitsDiffer > 0) != (string(a.Bits) != string(b.Bits)) {
			t.Errorf("from %v to %v are %d ulps and back %d, want %d", tc.a, tc.b, d.MaxULP, back.MaxULP, tc.want)
		}
	}
}

// The bits of the largest number and of -0 are near each other, and the numbers
// as far apart as can be; also behind others that differ by as much, of the same
// sign.
func TestStepsAcrossSigns(t *testing.T) {
	for _, sign := range []float64{1, -1} {
		far, one, zero := float32(math.MaxFloat32*sign), float32(sign), float32(math.Copysign(0, -sign))
		for _, d := range []Difference{
			Tensors(f32("x", far, far), f32("x", one, zero), Tolerance{}),
			Tensors(f32("x", one, zero), f32("x", far, far), Tolerance{}),
		} {
			if d.MaxULP != 0x7f7fffff {
				t.Errorf("from %v to %v are %d ulps", far, zero, d.MaxULP)
			}
		}
	}
}

func TestDecisions(t *testing.T) {
	if i, margin, err := Label([]float64{0.125, 0.75, 0.25}); i != 1 || margin != 0.5 || err != nil {
		t.Errorf("label %d, margin %v, %v", i, margin, err)
	}
	if _, _, err := Label([]float64{1}); err == nil {
		t.Error("a label of one class")
	}
	if _, _, err := Label([]float64{1, math.NaN()}); err == nil {
		t.Error("a label with NaN")
	}
	for v, want := range map[float64]int{0.5: 1, 0.4999: 0, 0.6: 1} {
		if d, _, err := Threshold([]float64{0, v}, 1, 0.5); d != want || err != nil {
			t.Errorf("%v decides %d, %v", v, d, err)
		}
	}
	for _, i := range []int{-1, 2} {
		if _, _, err := Threshold([]float64{0, 1}, i, 0.5); err == nil {
			t.Errorf("element %d of 2", i)
		}
	}
	if s, err := Score([]float64{1, 2}, []float64{2, 2}); err != nil || s.MeanDifference != 0.5 || s.MaxAbs != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := Score(nil, nil); err == nil {
		t.Error("scores of nothing")
	}
}

func TestArrows(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{join .Imports "\n"}}`, ".", "../stats").Output()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(out), "github.com/assay-dev/") {
		t.Errorf("numbers need nothing of the house: %s", out)
	}
}
