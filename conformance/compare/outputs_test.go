package compare

import (
	"encoding/binary"
	"math"
	"math/big"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"pgregory.net/rapid"
)

// encode writes numbers in a type, for the tests that know what comes out.
func encode(datatype string, values ...float64) Tensor {
	t := Tensor{Name: "x", Datatype: datatype, Shape: []int64{int64(len(values))}}
	for _, v := range values {
		switch Width(datatype) {
		case 1:
			t.Bits = append(t.Bits, byte(int64(v)))
		case 2:
			u := uint16(int64(v))
			if datatype == "BF16" {
				u = uint16(math.Float32bits(float32(v)) >> 16)
			}
			t.Bits = binary.LittleEndian.AppendUint16(t.Bits, u)
		case 4:
			u := uint32(int64(v))
			if datatype == "FP32" {
				u = math.Float32bits(float32(v))
			}
			t.Bits = binary.LittleEndian.AppendUint32(t.Bits, u)
		case 8:
			u := uint64(int64(v))
			if datatype == "FP64" {
				u = math.Float64bits(v)
			}
			t.Bits = binary.LittleEndian.AppendUint64(t.Bits, u)
		}
	}
	return t
}

// Every type is read as what it is: known bits, known numbers.
func TestEveryDatatype(t *testing.T) {
	for datatype, tc := range map[string]struct {
		bits []byte
		want []float64
	}{
		"BOOL": {[]byte{0, 1}, []float64{0, 1}}, "UINT8": {[]byte{0, 255}, []float64{0, 255}}, "INT8": {[]byte{255, 128}, []float64{-1, -128}},
		"UINT16": {[]byte{255, 255}, []float64{65535}}, "INT16": {[]byte{0, 128}, []float64{-32768}},
		"UINT32": {[]byte{255, 255, 255, 255}, []float64{math.MaxUint32}}, "INT32": {[]byte{0, 0, 0, 128}, []float64{math.MinInt32}},
		"UINT64": {[]byte{255, 255, 255, 255, 255, 255, 255, 255}, []float64{math.MaxUint64}}, "INT64": {[]byte{0, 0, 0, 0, 0, 0, 0, 128}, []float64{math.MinInt64}},
		// One; the largest; the smallest normal; the smallest subnormal; -2; 1/3.
		"FP16": {[]byte{0, 0x3c, 0xff, 0x7b, 0, 4, 1, 0, 0, 0xc0, 0x55, 0x35}, []float64{1, 65504, 0x1p-14, 0x1p-24, -2, 0.333251953125}},
		"BF16": {[]byte{0x80, 0x3f, 0x00, 0xc0, 0x01, 0x00, 0x7f, 0x7f}, []float64{1, -2, 0x1p-133, 3.3895313892515355e38}},
		"FP32": {[]byte{0, 0, 0x80, 0x3f, 1, 0, 0, 0}, []float64{1, 0x1p-149}}, "FP64": {[]byte{1, 0, 0, 0, 0, 0, 0, 0}, []float64{0x1p-1074}},
	} {
		x := Tensor{Name: "x", Datatype: datatype, Shape: []int64{int64(len(tc.want))}, Bits: tc.bits}
		got, err := x.Values()
		if err != nil {
			t.Errorf("%s: %v", datatype, err)
			continue
		}
		for i, v := range got {
			if v != tc.want[i] {
				t.Errorf("%s: element %d is %v, want %v", datatype, i, v, tc.want[i])
			}
		}
		if d := Tensors(x, x, Tolerance{}); d.Fault != "" || d.BitsDiffer != 0 || d.MaxULP != 0 || d.MaxScaled != 0 || d.Elements != len(tc.want) {
			t.Errorf("%s and itself: %+v", datatype, d)
		}
		last := x
		last.Bits = append([]byte(nil), x.Bits...)
		last.Bits[len(last.Bits)-Width(datatype)] ^= 1
		if d := Tensors(x, last, Tolerance{}); d.Fault != "" || d.BitsDiffer != 1 || d.MaxULP != 1 || d.Exceeding != 1 || d.MaxScaled != math.MaxFloat64 {
			t.Errorf("%s, one step in the last element: %+v", datatype, d)
		}
	}
	if len(kinds) != 13 {
		t.Errorf("%d types are known", len(kinds))
	}
	for _, d := range []string{"FP16", "BF16"} {
		inf := encode(d, 0)
		inf.Bits = []byte{0, 0x7c}
		nan := Tensor{Name: "x", Datatype: d, Shape: []int64{1}, Bits: []byte{1, 0xfe}}
		if d == "BF16" {
			inf.Bits, nan.Bits = []byte{0x80, 0xff}, []byte{0xc1, 0x7f}
		}
		if got := Tensors(encode(d, 0), inf, Tolerance{}); got.Fault != FaultInf {
			t.Errorf("%s: %+v", d, got)
		}
		if got := Within(encode(d, 0), nan, Tolerance{}); got.Fault != FaultNaN {
			t.Errorf("%s: %+v", d, got)
		}
	}
}

// Trap 7: a float64 does not hold every integer. Two ids that differ by one
// differ, and two that are far apart are not closer than they are.
func TestTrap7BigIntegers(t *testing.T) {
	for _, datatype := range []string{"INT64", "UINT64"} {
		a, b := encode(datatype, 0), encode(datatype, 0)
		binary.LittleEndian.PutUint64(a.Bits, 1<<62+1)
		binary.LittleEndian.PutUint64(b.Bits, 1<<62+2)
		if d := Tensors(a, b, Tolerance{}); d.Exceeding != 1 || d.MaxAbs != 1 || d.MaxULP != 1 {
			t.Errorf("%s: %+v", datatype, d)
		}
	}
	below, above := encode("UINT64", 0), encode("UINT64", 0)
	binary.LittleEndian.PutUint64(below.Bits, 1<<63-1)
	binary.LittleEndian.PutUint64(above.Bits, 1<<63)
	if d := Tensors(below, above, Tolerance{}); d.MaxULP != 1 || d.MaxAbs != 1 {
		t.Errorf("%+v", d)
	}
	lo, hi := encode("INT64", 0), encode("INT64", 0)
	binary.LittleEndian.PutUint64(lo.Bits, 1<<63)
	binary.LittleEndian.PutUint64(hi.Bits, 1<<63-1)
	if d := Tensors(lo, hi, Tolerance{}); d.MaxULP != math.MaxUint64 || d.MaxAbs != 0x1p64 {
		t.Errorf("%+v", d)
	}
	far := Tensors(encode("FP64", -math.MaxFloat64), encode("FP64", math.MaxFloat64), Tolerance{Absolute: 1})
	if far.Fault != "" || far.Exceeding != 1 || far.MaxAbs != math.MaxFloat64 {
		t.Errorf("two numbers as far apart as can be: %+v", far)
	}
}

// Trap 2 and 3: what is missing, extra or in another place is a fault, and so
// is what no tool looks at; none is a pass, and all of them have a name.
func TestTrap2FailingOpen(t *testing.T) {
	a, b := f32("a", 1), f32("b", 2)
	for name, tc := range map[string]struct {
		got  []Tensor
		want map[string]Fault
	}{
		"the same":  {[]Tensor{a, b}, map[string]Fault{}},
		"missing":   {[]Tensor{a}, map[string]Fault{"b": FaultMissing}},
		"nothing":   {nil, map[string]Fault{"a": FaultMissing, "b": FaultMissing}},
		"extra":     {[]Tensor{a, b, f32("c", 3)}, map[string]Fault{"c": FaultExtra}},
		"twice":     {[]Tensor{a, a, b}, map[string]Fault{"a": FaultExtra, "b": FaultReordered}},
		"reordered": {[]Tensor{b, a}, map[string]Fault{"a": FaultReordered, "b": FaultReordered}},
		"renamed":   {[]Tensor{a, f32("B", 2)}, map[string]Fault{"B": FaultExtra, "b": FaultMissing}},
	} {
		got := Outputs([]Tensor{a, b}, tc.got)
		if len(got) != len(tc.want) {
			t.Errorf("%s: %v", name, got)
		}
		for k, f := range tc.want {
			if got[k] != f {
				t.Errorf("%s: %v", name, got)
			}
		}
	}
	two := encode("BOOL", 1)
	two.Bits[0] = 2
	short := f32("a", 1)
	short.Bits = short.Bits[:3]
	nan, infinite := float32(math.NaN()), float32(math.Inf(-1))
	text := Tensor{Name: "a", Datatype: "BYTES", Shape: []int64{1}, Bits: []byte{0, 0, 0, 0}}
	for name, tc := range map[string]struct {
		want, got Tensor
		fault     Fault
	}{
		"other name": {a, b, FaultReordered}, "other type": {a, Tensor{Name: "a", Datatype: "FP64", Shape: a.Shape, Bits: make([]byte, 8)}, FaultDatatype},
		"other shape": {a, f32("a", 1, 2), FaultShape}, "too few bytes": {a, short, FaultShape}, "nothing at all": {f32("a"), f32("a"), FaultEmpty},
		"NaN": {a, f32("a", nan), FaultNaN}, "infinite": {a, f32("a", infinite), FaultInf}, "NaN on both sides": {f32("a", nan), f32("a", nan), FaultReference},
		"infinite on both sides": {f32("a", infinite), f32("a", infinite), FaultReference}, "no BOOL": {encode("BOOL", 1), two, FaultValue}, "a type nobody knows": {text, text, FaultReference},
	} {
		for which, compare := range map[string]func(a, b Tensor, t Tolerance) Difference{"Tensors": Tensors, "Within": Within} {
			if d := compare(tc.want, tc.got, Tolerance{Absolute: math.MaxFloat64}); d.Fault != tc.fault || d.Broken == "" || d.Elements != 0 {
				t.Errorf("%s, %s: %+v", name, which, d)
			}
		}
	}
	// The last of many elements, in and out of a whole block.
	for _, n := range []int{1, block - 1, block, block + 1, 3*block + 7} {
		x, y := f32("a", make([]float32, n)...), f32("a", make([]float32, n)...)
		binary.LittleEndian.PutUint32(y.Bits[4*(n-1):], math.Float32bits(nan))
		if d := Tensors(x, y, Tolerance{}); d.Fault != FaultNaN {
			t.Errorf("NaN at the end of %d: %+v", n, d)
		}
		binary.LittleEndian.PutUint32(y.Bits[4*(n-1):], math.Float32bits(1))
		if d := Tensors(x, y, Tolerance{}); d.Exceeding != 1 || d.Elements != n || d.BitsDiffer != 1 || d.Histogram[0] != uint32(n-1) || d.Histogram[Bucket(1)] != 1 {
			t.Errorf("a difference at the end of %d: %+v", n, d)
		}
	}
}

// All measures agree with a plain computation of each, of any finite numbers.
func TestMeasuresArePlain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 2*block+3).Draw(t, "n")
		small := rapid.Float32Range(-1e6, 1e6)
		w, g := make([]float32, n), make([]float32, n)
		first := rapid.SliceOfN(small, 1, 9).Draw(t, "want")
		second := rapid.SliceOfN(small, 1, 9).Draw(t, "got")
		for i := range w {
			w[i], g[i] = first[i%len(first)], second[i%len(second)]
		}
		tol := Tolerance{Absolute: rapid.Float64Range(0, 10).Draw(t, "atol"), Relative: rapid.Float64Range(0, 1).Draw(t, "rtol")}
		want, got := f32("x", w...), f32("x", g...)
		d, quick, back := Tensors(want, got, tol), Within(want, got, tol), Tensors(got, want, tol)
		var maxAbs, maxScaled float64
		exceeding, differ := 0, 0
		squares := new(big.Float).SetPrec(200)
		for i := range w {
			abs := math.Abs(float64(g[i]) - float64(w[i]))
			allowed := tol.Absolute + float64(tol.Relative*math.Abs(float64(w[i])))
			maxAbs = max(maxAbs, abs)
			if abs > allowed {
				exceeding++
			}
			if abs > 0 && allowed == 0 {
				maxScaled = math.MaxFloat64
			} else if abs > 0 {
				maxScaled = max(maxScaled, abs/allowed)
			}
			if math.Float32bits(w[i]) != math.Float32bits(g[i]) {
				differ++
			}
			squares.Add(squares, new(big.Float).SetPrec(200).Mul(big.NewFloat(abs), big.NewFloat(abs)))
		}
		if d.MaxAbs != maxAbs || d.Exceeding != exceeding || d.BitsDiffer != differ || math.Abs(d.MaxScaled-maxScaled) > 1e-15*maxScaled {
			t.Errorf("%+v, plainly %v, %v, %d, %d", d, maxAbs, maxScaled, exceeding, differ)
		}
		if quick.MaxAbs != d.MaxAbs || quick.MaxScaled != d.MaxScaled || quick.Exceeding != d.Exceeding {
			t.Errorf("Within has %+v, Tensors %+v", quick, d)
		}
		if exact, _ := squares.Float64(); math.Abs(d.SquaredError-exact) > 1e-12*exact {
			t.Errorf("sum of squares %v, exactly %v", d.SquaredError, exact)
		}
		if back.MaxAbs != d.MaxAbs || back.MaxULP != d.MaxULP || back.BitsDiffer != d.BitsDiffer || back.SquaredError != d.SquaredError || back.Product != d.Product {
			t.Errorf("there %+v, and back %+v", d, back)
		}
		total := 0
		for _, c := range d.Histogram {
			total += int(c)
		}
		if total != n {
			t.Errorf("the histogram has %d of %d", total, n)
		}
		if c := d.Cosine(); !(c >= -1 && c <= 1) {
			t.Errorf("cosine %v", c)
		}
		var sum Difference
		sum.Add(&d)
		sum.Add(&back)
		if sum.Elements != 2*n || sum.MaxULP != d.MaxULP || math.Abs(sum.Error) > 1e-6*math.Abs(d.Error) {
			t.Errorf("added up: %+v", sum)
		}
	})
}

func TestDirectionAndSignal(t *testing.T) {
	d := Tensors(f32("x", 3, 4), f32("x", 6, 8), Tolerance{})
	if d.Cosine() != 1 || d.Error != 7 || math.Abs(d.SNR()) > 1e-12 {
		t.Errorf("twice as long: cosine %v, SNR %v", d.Cosine(), d.SNR())
	}
	if d := Tensors(f32("x", 1, 0), f32("x", 0, 1), Tolerance{}); d.Cosine() != 0 {
		t.Errorf("at right angles: %v", d.Cosine())
	}
	if d := Tensors(f32("x", 0, 0), f32("x", 0, 1), Tolerance{}); d.Cosine() != 0 || !math.IsInf(d.SNR(), -1) {
		t.Errorf("from nothing: %v, %v", d.Cosine(), d.SNR())
	}
	if d := Tensors(f32("x", 0), f32("x", 0), Tolerance{}); d.Cosine() != 1 || !math.IsInf(d.SNR(), 1) {
		t.Errorf("nothing and nothing: %v, %v", d.Cosine(), d.SNR())
	}
	if d := Tensors(f32("x", 10), f32("x", 11), Tolerance{}); math.Abs(d.SNR()-20) > 1e-9 {
		t.Errorf("an error of a tenth is %v dB, want 20", d.SNR())
	}
	for x := 1e-300; x < 1e300; x *= 7.3 {
		if got, want := ln(x), math.Log(x); math.Abs(got-want) > 4e-16*math.Abs(want) {
			t.Errorf("ln(%v) = %v, want %v", x, got, want)
		}
	}
	for i := range buckets {
		if Bucket(From(i)) != i {
			t.Errorf("bucket %d begins at %v, which is in %d", i, From(i), Bucket(From(i)))
		}
	}
}

// Trap 10: one global tolerance. A swap of two classes of a saturated softmax
// passes a loose tolerance and a cosine of 0.99, and is a flip; a difference of
// one part in a thousand does not pass 1e-5, and flips nothing.
func TestTrap10OneTolerance(t *testing.T) {
	want, swapped := f32("p", 0.500001, 0.499999), f32("p", 0.499999, 0.500001)
	d := Tensors(want, swapped, Tolerance{Absolute: 1e-5})
	a, _, err1 := Label([]float64{0.500001, 0.499999})
	b, _, err2 := Label([]float64{0.499999, 0.500001})
	if d.Exceeding != 0 || d.Cosine() < 0.99 || a == b || err1 != nil || err2 != nil {
		t.Errorf("%+v, labels %d and %d", d, a, b)
	}
}

func TestRankingsAndDistributions(t *testing.T) {
	top, margin, err := TopK([]float64{0.1, 0.5, 0.5, 0.2}, 3)
	if err != nil || margin != 0.1 || len(top) != 3 || top[0] != 1 || top[1] != 2 || top[2] != 3 {
		t.Errorf("%v, %v, %v", top, margin, err)
	}
	if r := Rankings(top, []int{2, 1, 0}); r.Missing != 1 || r.Ordered {
		t.Errorf("%+v", r)
	}
	if _, m, err := TopK([]float64{1, 2}, 2); !math.IsInf(m, 1) || err != nil {
		t.Errorf("%v, %v", m, err)
	}
	for _, k := range []int{0, 3} {
		if _, _, err := TopK([]float64{1, 2}, k); err == nil {
			t.Errorf("the greatest %d of 2", k)
		}
	}
	// SciPy 1.10: entropy([.5,.5],[.9,.1]) = 0.5108256237659907, jensenshannon(…)**2 = 0.10174922507919676.
	d, err := Probabilities([]float64{0.5, 0.5}, []float64{0.9, 0.1}, 1e-9)
	if err != nil || math.Abs(d.KL-0.5108256237659907) > 1e-12 || math.Abs(d.JS-0.10174922507919676) > 1e-12 || math.Abs(d.Variation-0.4) > 1e-12 || math.Abs(d.Hellinger-0.3249196962329063) > 1e-9 {
		t.Errorf("%+v, %v", d, err)
	}
	if d, err := Probabilities([]float64{0.5, 0.5}, []float64{1, 0}, 0); err != nil || !math.IsInf(d.KL, 1) || !(d.JS < math.Ln2) {
		t.Errorf("what is excluded: %+v, %v", d, err)
	}
	for name, p := range map[string][]float64{"no distribution": {0.5, 0.6}, "negative": {1.5, -0.5}, "NaN": {math.NaN(), 1}, "fewer classes": {1}, "none": nil} {
		if _, err := Probabilities([]float64{0.5, 0.5}, p, 1e-6); err == nil {
			t.Errorf("%s was compared", name)
		}
	}
	if e, err := Embeddings([]float64{3, 4}, []float64{6, 8}); err != nil || e.Cosine != 1 || e.Norm != 2 {
		t.Errorf("%+v, %v", e, err)
	}
	for name, v := range map[string][]float64{"zero": {0, 0}, "NaN": {math.NaN(), 1}, "infinite": {math.Inf(1), 1}, "shorter": {1}, "none": nil} {
		if _, err := Embeddings([]float64{3, 4}, v); err == nil {
			t.Errorf("an embedding that is %s was compared", name)
		}
	}
}

func TestTexts(t *testing.T) {
	for _, tc := range []struct {
		want, got string
		d         TextDifference
	}{
		{"kitten", "sitting", TextDifference{false, false, 0, 3, 7}}, {"same", "same", TextDifference{true, true, -1, 0, 4}},
		{"the answer", "the  answer ", TextDifference{false, true, 4, 2, 12}}, {"cafe\u0301", "caf\u00e9", TextDifference{false, true, 3, 2, 5}},
		{"", "x", TextDifference{false, false, 0, 1, 1}}, {strings.Repeat("a", 2000) + "b", strings.Repeat("a", 2000) + "c", TextDifference{false, false, 2000, 1, 2001}},
	} {
		if d, err := Texts(tc.want, tc.got); err != nil || d != tc.d {
			t.Errorf("%.9q and %.9q: %+v, %v; want %+v", tc.want, tc.got, d, err, tc.d)
		}
	}
	if _, err := Texts("a", "\xff"); err == nil {
		t.Error("bytes that are no text were compared")
	}
	answer := regexp.MustCompile(`(?i)answer:\s*(\S+)`)
	if a, ok := Extract("Answer: 3\nno, answer:  42", answer); !ok || a != "42" {
		t.Errorf("%q, %v", a, ok)
	}
	if _, ok := Extract("I do not know", answer); ok {
		t.Error("an answer was found in none")
	}
	tokens := func(list ...string) (out []TokenLogprob) {
		for i, s := range list {
			out = append(out, TokenLogprob{s, -float64(i) / 8, map[string]float64{s: -float64(i) / 8, "z": -5}})
		}
		return out
	}
	d, err := Logprobs(tokens("a", "b", "c"), tokens("a", "b", "z", "c"))
	if err != nil || d.Positions != 2 || d.Divergence != 2 || d.Margin != 4.75 || d.MaxAbs != 0 || d.TopMissing != 1 || d.TopTotal != 6 {
		t.Errorf("%+v, %v", d, err)
	}
	if d, err := Logprobs(tokens("a", "b"), tokens("a")); err != nil || d.Divergence != 1 || !math.IsInf(d.Margin, 1) {
		t.Errorf("an answer that ends early: %+v, %v", d, err)
	}
	for name, bad := range map[string]float64{"NaN": math.NaN(), "positive": 0.1, "below what servers send": -1e6} {
		if _, err := Logprobs(tokens("a"), []TokenLogprob{{"a", bad, nil}}); err == nil {
			t.Errorf("a logprob that is %s was compared", name)
		}
	}
	if _, err := Logprobs(nil, nil); err == nil {
		t.Error("no logprobs agree with none")
	}
}

func TestToolCalls(t *testing.T) {
	for _, tc := range []struct {
		want, got string
		slack     float64
		where     string
	}{
		{`{"a":1,"b":[1,2]}`, `{ "b":[1.0,2e0], "a":1 }`, 0, ""}, {`{"a":1}`, `{"a":1.001}`, 0, "$.a"}, {`{"a":1}`, `{"a":1.001}`, 0.01, ""},
		{`{"a":null}`, `{}`, 1, "$.a"}, {`{}`, `{"a":null}`, 1, "$.a"}, {`{"a":[1]}`, `{"a":[1,1]}`, 1, "$.a"}, {`{"a":{"b":"x"}}`, `{"a":{"b":"y"}}`, 1, "$.a.b"}, {`[1,"2"]`, `[1,2]`, 5, "$[1]"},
	} {
		same, where, err := JSON([]byte(tc.want), []byte(tc.got), tc.slack)
		if err != nil || where != tc.where || same != (where == "") {
			t.Errorf("%s and %s: %v, %q, %v", tc.want, tc.got, same, where, err)
		}
	}
	if _, _, err := JSON([]byte(`{}`), []byte(`{"a":`), 0); err == nil {
		t.Error("half an object was compared")
	}
	schema, err := Schema([]byte(`{"type":"object","properties":{"city":{"type":"string"}},"required":["city"],"additionalProperties":false}`))
	if err != nil {
		t.Fatal(err)
	}
	schemas := map[string]*jsonschema.Schema{"weather": schema}
	rome := []ToolCall{{"weather", `{"city":"Rome"}`}}
	for name, tc := range map[string]struct {
		got  []ToolCall
		want ToolDifference
	}{
		"same": {rome, ToolDifference{Calls: 1}}, "none": {nil, ToolDifference{Trigger: true, Names: true}},
		"other city": {[]ToolCall{{"weather", `{"city":"Oslo"}`}}, ToolDifference{Arguments: 1, Calls: 1}}, "no city": {[]ToolCall{{"weather", `{}`}}, ToolDifference{Arguments: 1, Invalid: 1, Calls: 1}},
		"no JSON": {[]ToolCall{{"weather", `Rome`}}, ToolDifference{Arguments: 1, Invalid: 1, Calls: 1}}, "not offered": {[]ToolCall{{"forecast", `{}`}}, ToolDifference{Names: true, Invalid: 1, Calls: 1}},
		"twice": {append(rome, rome...), ToolDifference{Names: true, Calls: 2}},
	} {
		if d := ToolCalls(rome, tc.got, schemas, 0); d != tc.want || d.Same() != (name == "same") {
			t.Errorf("%s: %+v", name, d)
		}
	}
	for name, u := range map[string]Usage{"another template": {11, 5}, "cut off": {10, 4}, "not counted": {-1, 5}, "half counted": {10, -1}} {
		if Usages(Usage{10, 5}, u) == "" {
			t.Errorf("%s passes", name)
		}
	}
	if s := Usages(Usage{10, 5}, Usage{10, 5}); s != "" {
		t.Error(s)
	}
}

// Coordinated omission: one stall delays all that should have been asked
// meanwhile, and shows in the quantiles.
func TestLatencyFromTheIntendedStart(t *testing.T) {
	start := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	l, asSent := NewLatency(), NewLatency()
	stalled := start.Add(time.Second)
	for i := range 100 {
		intended := start.Add(time.Duration(i) * 10 * time.Millisecond)
		sent := intended
		if sent.Before(stalled) {
			sent = stalled // the server stood still for a second, and the client waited
		}
		l.Add(Timing{intended, sent.Add(time.Millisecond), sent.Add(5 * time.Millisecond), 5})
		asSent.Add(Timing{sent, sent.Add(time.Millisecond), sent.Add(5 * time.Millisecond), 5})
	}
	if p := time.Duration(l.Whole.ValueAtQuantile(50)) * time.Microsecond; p < 400*time.Millisecond {
		t.Errorf("half of the answers waited half a second, and the median is %v", p)
	}
	if p := asSent.Whole.ValueAtQuantile(99); p > 6000 {
		t.Errorf("the test does not test anything: %d", p)
	}
	if p := l.PerToken.ValueAtQuantile(50); p != 1000 {
		t.Errorf("a token each %d µs, want 1000", p)
	}
	if p := asSent.First.ValueAtQuantile(50); p != 1000 {
		t.Errorf("the first token after %d µs, want 1000", p)
	}
	l.Add(Timing{start, start.Add(-1), start, 0})
	l.Add(Timing{start, start, start.Add(2 * longest), 0})
	if l.Outside != 2 || !strings.Contains(Quantiles(l.First), "of 100") || Quantiles(NewLatency().First) != "nothing measured" {
		t.Errorf("%d outside, %s", l.Outside, Quantiles(l.First))
	}
}

// Whatever two tensors there are: no panic, and either a fault or all elements.
func FuzzTensors(f *testing.F) {
	f.Add("FP32", "FP32", []byte{0, 0, 0x80, 0x3f}, []byte{1, 0, 0x80, 0x3f}, int64(1), 1e-6)
	f.Add("BF16", "BF16", []byte{0x80, 0x7f}, []byte{1, 0}, int64(1), 0.0)
	f.Add("BOOL", "BOOL", []byte{2}, []byte{1}, int64(1), 0.0)
	f.Add("INT64", "INT64", []byte{255, 255, 255, 255, 255, 255, 255, 127}, []byte{0, 0, 0, 0, 0, 0, 0, 128}, int64(1), 0.0)
	f.Fuzz(func(t *testing.T, a, b string, x, y []byte, n int64, tolerance float64) {
		want, got := Tensor{"x", a, []int64{n}, x}, Tensor{"x", b, []int64{n}, y}
		tol := Tolerance{Absolute: tolerance}
		d, quick := Tensors(want, got, tol), Within(want, got, tol)
		if d.Fault != quick.Fault || d.Exceeding != quick.Exceeding || d.MaxAbs != quick.MaxAbs {
			t.Errorf("%+v and %+v", d, quick)
		}
		switch {
		case d.Fault != "":
			if d.Elements != 0 || d.Broken == "" {
				t.Errorf("%+v", d)
			}
		case d.Elements != int(n) || math.IsNaN(d.MaxAbs) || math.IsInf(d.MaxAbs, 0) || (d.BitsDiffer == 0) != (string(x) == string(y)):
			t.Errorf("%+v of %x and %x", d, x, y)
		}
	})
}

func FuzzJSON(f *testing.F) {
	f.Add([]byte(`{"a":[1,2,{"b":null}]}`), []byte(`{"a":[1,2.0,{"b":null}]}`))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		same, _, err := JSON(a, b, 0)
		back, _, err2 := JSON(b, a, 0)
		if same != back || (err == nil) != (err2 == nil) {
			t.Errorf("%s and %s: %v, %v; back %v, %v", a, b, same, err, back, err2)
		}
		if itself, _, err := JSON(a, a, 0); err == nil && !itself {
			t.Errorf("%s is not itself", a)
		}
	})
}

// Every number of a type is its own nearest one; half way between two it is the
// one whose last bit is 0; and nothing becomes infinite.
func TestNearestFloats(t *testing.T) {
	for name, most := range map[string]uint16{"FP16": 0x7bff, "BF16": 0x7f7f} {
		value := func(bits uint16) float64 {
			v, err := Tensor{Name: "x", Datatype: name, Shape: []int64{1}, Bits: binary.LittleEndian.AppendUint16(nil, bits)}.Values()
			if err != nil {
				t.Fatal(err)
			}
			return v[0]
		}
		nearest := func(v float64) uint16 {
			bits, err := AppendFloat(nil, name, v)
			if err != nil {
				t.Fatalf("%s of %v: %v", name, v, err)
			}
			return binary.LittleEndian.Uint16(bits)
		}
		for b := range most + 1 {
			for _, sign := range []uint16{0, 0x8000} {
				if got := nearest(value(b | sign)); got != b|sign {
					t.Fatalf("%s: %#04x becomes %#04x", name, b|sign, got)
				}
			}
			if b == most {
				continue
			}
			low, high := value(b), value(b+1)
			middle := low + (high-low)/2
			even := b + b%2
			for v, want := range map[float64]uint16{middle: even, math.Nextafter(middle, 0): b, math.Nextafter(middle, math.Inf(1)): b + 1} {
				if got := nearest(v); got != want {
					t.Fatalf("%s: %v, between %#04x and %#04x, becomes %#04x and not %#04x", name, v, b, b+1, got, want)
				}
			}
		}
		beyond := value(most) + (value(most)-value(most-1))/2
		nearest(math.Nextafter(beyond, 0))
		for _, v := range []float64{beyond, -beyond, math.MaxFloat64, math.Inf(1), math.NaN()} {
			if bits, err := AppendFloat(nil, name, v); err == nil {
				t.Errorf("%s of %v is %x", name, v, bits)
			}
		}
	}
	// The two that the language knows, by its own conversions.
	r := rand.New(rand.NewPCG(1, 2))
	for range 200_000 {
		v := math.Float64frombits(r.Uint64())
		if math.IsNaN(v) || math.IsInf(v, 0) {
			continue
		}
		if got, err := AppendFloat(nil, "FP64", v); err != nil || binary.LittleEndian.Uint64(got) != math.Float64bits(v) {
			t.Fatalf("FP64 of %v: %x, %v", v, got, err)
		}
		v = float64(math.Float32frombits(r.Uint32())) * (1 + r.Float64()*1e-7)
		if f := float32(v); !math.IsInf(float64(f), 0) && f == f {
			if got, err := AppendFloat(nil, "FP32", v); err != nil || binary.LittleEndian.Uint32(got) != math.Float32bits(f) {
				t.Fatalf("FP32 of %v: %x and not %x, %v", v, got, math.Float32bits(f), err)
			}
		}
	}
}
