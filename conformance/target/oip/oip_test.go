package oip

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/conformance/target/targettest"
	"github.com/assay-dev/assay/conformance/target/tensor"
	"github.com/assay-dev/assay/verify/attest"
)

func echo(in []float32) []float32 { return []float32{in[0], in[1]} }

var question = target.Question{
	ID: "case-1", Model: "m", Version: "1",
	Inputs: []compare.Tensor{targettest.FP32("features", []int64{1, 2}, 0.1, 0.5)}, Outputs: []string{"probabilities"},
}

func checkEcho(t testing.TB, a *target.Answer) {
	t.Helper()
	if len(a.Outputs) != 1 {
		t.Fatalf("%d outputs", len(a.Outputs))
	}
	want := targettest.FP32("probabilities", []int64{1, 2}, 0.1, 0.5)
	if got := a.Outputs[0]; got.Name != want.Name || got.Datatype != want.Datatype || !bytes.Equal(got.Bits, want.Bits) || len(got.Shape) != 2 || got.Shape[1] != 2 {
		t.Errorf("%+v is not %+v", got, want)
	}
}

// faults are what those of targettest.Server have to come to in JSON.
var faults = map[string]string{
	"nan": "not-finite", "infinity": "not-finite", "null": "not-finite", "strings": "not-finite",
	"shape": targettest.Answer, "dtype": targettest.Answer, "drop-output": "missing-output", "extra-output": "extra-output",
	"error-in-200": "error-in-200", "wrong-id": "wrong-id", "wrong-model": "wrong-model", "wrong-version": "wrong-version",
	"truncated": "truncated", "http-500": "http", "http-429": "http", "hang": "timeout", "close": "connection",
	"not-json": "malformed", "duplicate-key": "malformed", "empty": "truncated", "cached": "cached",
}

func bad() map[string]target.Question {
	with := func(change func(*target.Question)) target.Question {
		q := question
		q.Inputs = append([]compare.Tensor{}, question.Inputs...)
		change(&q)
		return q
	}
	return map[string]target.Question{
		"JSON":               with(func(q *target.Question) { q.Inputs, q.Request = nil, json.RawMessage(`{}`) }),
		"no inputs":          with(func(q *target.Question) { q.Inputs = nil }),
		"bits of no shape":   with(func(q *target.Question) { q.Inputs[0].Shape = []int64{1, 3} }),
		"a datatype of ours": with(func(q *target.Question) { q.Inputs[0].Datatype = "FP8" }),
		"an open shape":      with(func(q *target.Question) { q.Inputs[0].Shape = []int64{-1, 2} }),
	}
}

func TestREST(t *testing.T) {
	for _, name := range []string{Name, NameBinary} {
		t.Run(name, func(t *testing.T) {
			s := targettest.Subject{
				Open: func(t testing.TB, fault func(int) string) (target.Target, targettest.Environment) {
					s := targettest.NewServer(t, echo)
					s.SetMisbehave(fault)
					tg, err := New(attest.Target{Protocol: name, URL: s.URL, Model: "m", Version: "1"})
					if err != nil {
						t.Fatal(err)
					}
					return tg, s
				},
				Question: question, Check: checkEcho, Faults: map[string]string{}, Bad: bad(),
			}
			for _, f := range targettest.Faults {
				s.Faults[f] = faults[f]
			}
			if name == NameBinary {
				// Bits can say NaN: that is an answer, and a bad one.
				s.Faults["nan"], s.Faults["infinity"] = targettest.Answer, targettest.Answer
				s.Faults["null"], s.Faults["strings"] = "malformed", "malformed"
				for _, f := range targettest.BinaryFaults {
					s.Faults[f] = "malformed"
				}
			} else {
				s.Bad["NaN"] = target.Question{ID: "1", Model: "m", Inputs: []compare.Tensor{targettest.FP32("features", []int64{1}, float32(math.NaN()))}}
				s.Bad["BF16"] = target.Question{ID: "1", Model: "m", Inputs: []compare.Tensor{{Name: "x", Datatype: "BF16", Shape: []int64{1}, Bits: []byte{0x80, 0x3f}}}}
				s.Bad["bytes that are no text"] = target.Question{ID: "1", Model: "m", Inputs: []compare.Tensor{{Name: "x", Datatype: "BYTES", Shape: []int64{1}, Bits: []byte{1, 0, 0, 0, 0xff}}}}
			}
			targettest.Test(t, s)
		})
	}
}

// tensors are one of every datatype, with the values that other ways through
// decimals or other types lose.
func tensors() []compare.Tensor {
	var list []compare.Tensor
	add := func(datatype string, shape []int64, bits []byte) {
		list = append(list, compare.Tensor{Name: strings.ToLower(datatype), Datatype: datatype, Shape: shape, Bits: bits})
	}
	le := func(v any) []byte { b, _ := binary.Append(nil, binary.LittleEndian, v); return b }
	add("BOOL", []int64{3}, []byte{1, 0, 1})
	add("UINT8", []int64{2}, []byte{0, 255})
	add("INT8", []int64{2, 1}, le([]int8{-128, 127}))
	add("UINT16", []int64{2}, le([]uint16{1, math.MaxUint16}))
	add("INT16", []int64{2}, le([]int16{math.MinInt16, -1}))
	add("UINT32", []int64{2}, le([]uint32{1, math.MaxUint32}))
	add("INT32", []int64{2}, le([]int32{math.MinInt32, -1}))
	add("UINT64", []int64{2}, le([]uint64{math.MaxUint64, 1<<53 + 1}))
	add("INT64", []int64{2}, le([]int64{math.MinInt64, -(1<<53 + 1)}))
	add("FP32", []int64{7}, le([]float32{0.1, 1.0 / 3, math.SmallestNonzeroFloat32, math.MaxFloat32, float32(math.Copysign(0, -1)), 16777217, 1e-45}))
	add("FP64", []int64{3}, le([]float64{0.1, math.SmallestNonzeroFloat64, -math.MaxFloat64}))
	add("BYTES", []int64{2, 1}, append(append(le(uint32(0)), le(uint32(5))...), `a"é`+"\n"...))
	add("FP16", []int64{2}, le([]uint16{0x3c00, 0x0001}))
	add("BF16", []int64{2}, le([]uint16{0x3f80, 0x8000}))
	return list
}

func TestEveryDatatypeKeepsItsBits(t *testing.T) {
	server := targettest.NewServer(t, echo)
	for _, name := range []string{Name, NameBinary} {
		tg, err := New(attest.Target{Protocol: name, URL: server.URL, Model: "echo"})
		if err != nil {
			t.Fatal(err)
		}
		q := target.Question{ID: "1", Model: "echo", Inputs: tensors()}
		if name == Name {
			q.Inputs = q.Inputs[:len(q.Inputs)-2] // JSON has neither FP16 nor BF16
		}
		keepsBits(t, tg, q)
	}
}

func keepsBits(t *testing.T, tg target.Target, q target.Question) {
	t.Helper()
	for _, in := range q.Inputs {
		q.Outputs = append(q.Outputs, in.Name)
	}
	raw, err := tg.Encode(q)
	if err != nil {
		t.Fatal(err)
	}
	x := tg.Send(t.Context(), raw)
	if x.Failure != nil {
		t.Fatal(x.Failure)
	}
	a, err := tg.Decode(q, x.Response)
	if err != nil {
		t.Fatalf("%v: %q", err, x.Body)
	}
	for i, in := range q.Inputs {
		if got := a.Outputs[i]; got.Datatype != in.Datatype || !bytes.Equal(got.Bits, in.Bits) {
			t.Errorf("%s went as %x and came as %s %x", in.Datatype, in.Bits, got.Datatype, got.Bits)
		}
	}
}

// The example of the binary tensor data extension, and one of JSON: the bytes
// are hashed, so they must not change.
func TestBytes(t *testing.T) {
	q := target.Question{ID: "1", Model: "mymodel", Outputs: []string{"output0"}, Inputs: []compare.Tensor{
		{Name: "input0", Datatype: "UINT32", Shape: []int64{2, 2}, Bits: []byte{1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0}},
		{Name: "input1", Datatype: "BOOL", Shape: []int64{3}, Bits: []byte{1, 0, 1}},
	}}
	got, err := Binary{}.Encode(q)
	head := `{"id":"1","inputs":[{"name":"input0","shape":[2,2],"datatype":"UINT32","parameters":{"binary_data_size":16}},` +
		`{"name":"input1","shape":[3],"datatype":"BOOL","parameters":{"binary_data_size":3}}],"outputs":[{"name":"output0","parameters":{"binary_data":true}}]}`
	if want := head + "\x01\x00\x00\x00\x02\x00\x00\x00\x03\x00\x00\x00\x04\x00\x00\x00\x01\x00\x01"; err != nil || string(got) != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	if n := headerLength(got); n != len(head) {
		t.Errorf("the JSON has %d bytes, not %d", len(head), n)
	}
	for _, s := range []string{"", "x", `{"a":"}`, `{"a":"\"}"`} {
		if n := headerLength([]byte(s)); n != -1 {
			t.Errorf("%q has a header of %d bytes", s, n)
		}
	}
	got, err = Protocol{}.Encode(q)
	if want := `{"id":"1","inputs":[{"name":"input0","shape":[2,2],"datatype":"UINT32","data":[1,2,3,4]},{"name":"input1","shape":[3],"datatype":"BOOL","data":[true,false,true]}],"outputs":[{"name":"output0"}]}`; err != nil || string(got) != want {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
	got, err = GRPC{}.Encode(q)
	want := "0a076d796d6f64656c" + "1a0131" + // model_name = 1, id = 3
		"2a14" + "0a06696e70757430" + "120655494e543332" + "1a020202" + // inputs = 5 {name = 1, datatype = 2, shape = 3, packed}
		"2a11" + "0a06696e70757431" + "1204424f4f4c" + "1a0103" +
		"3209" + "0a076f757470757430" + // outputs = 6 {name = 1}
		"3a10" + "01000000020000000300000004000000" + "3a03" + "010001" // raw_input_contents = 7
	if err != nil || hex.EncodeToString(got) != want {
		t.Errorf("%x, %v, want %s", got, err, want)
	}
}

func TestNestedData(t *testing.T) {
	q := target.Question{ID: "1", Model: "m", Outputs: []string{"p"}}
	a, err := Protocol{}.Decode(q, target.Response{Status: 200, Body: []byte(`{"model_name":"m","id":"1","parameters":{"seed":7},"outputs":[{"name":"p","shape":[2,2],"datatype":"FP32","data":[[1,2],[3,4]]}]}`)})
	if err != nil {
		t.Fatal(err)
	}
	if v, err := a.Outputs[0].Values(); err != nil || len(v) != 4 || v[3] != 4 {
		t.Errorf("%v, %v", v, err)
	}
	if a.Applied["seed"] != "7" {
		t.Errorf("applied %v", a.Applied)
	}
}

func TestWrongNumbers(t *testing.T) {
	q := target.Question{ID: "1", Model: "m", Outputs: []string{"p"}}
	for datatype, data := range map[string]string{
		"UINT8": "[256]", "INT8": "[-129]", "UINT64": "[-1]", "INT64": "[9223372036854775808]", "INT32": "[1.5]", "BOOL": "[1]", "BYTES": "[1]", "FP16": "[1]", "BF16": "[1]", "FP32": "[true]", "FP64": "1",
	} {
		body := `{"model_name":"m","id":"1","outputs":[{"name":"p","shape":[1],"datatype":"` + datatype + `","data":` + data + `}]}`
		if a, err := (Protocol{}).Decode(q, target.Response{Status: 200, Body: []byte(body)}); err == nil {
			t.Errorf("%s %s was read as %x", datatype, data, a.Outputs[0].Bits)
		}
	}
}

// Evidence: what the configuration says is in the description, and a cache
// that only the statistics own up to is found.
func TestEvidence(t *testing.T) {
	for _, cached := range []bool{false, true} {
		s := targettest.NewServer(t, echo)
		s.Triton, s.Cached = true, cached
		tg, err := New(attest.Target{Protocol: NameBinary, URL: s.URL, Model: "m", Version: "1"})
		if err != nil {
			t.Fatal(err)
		}
		checkEvidence(t, tg, cached)
	}
}

func checkEvidence(t *testing.T, tg interface {
	target.Target
	target.Prober
}, cached bool) {
	t.Helper()
	d, err := tg.Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for k, want := range map[string]string{
		"config.backend": "fake", "config.instance_group": "KIND_CPU x1", "config.max_batch_size": "1024",
		"config.response_cache": map[bool]string{false: "false", true: "true"}[cached], "config.parameter.precision": "fp32",
	} {
		if d.Parameters[k] != want {
			t.Errorf("%s is %q, want %q", k, d.Parameters[k], want)
		}
	}
	checks := tg.Probe(t.Context(), question)
	if len(checks) != 1 || checks[0].Passed == cached {
		t.Errorf("cached %v: %+v", cached, checks)
	}
	t.Log(checks)
}

// A cache that even the statistics are silent about: they do not move.
func TestStatisticsThatStandStill(t *testing.T) {
	s := targettest.NewServer(t, echo)
	tg, err := New(attest.Target{Protocol: Name, URL: s.URL, Model: "m", Version: "1"})
	if err != nil {
		t.Fatal(err)
	}
	for moved, want := range map[uint64]bool{0: false, 1: false, 2: true} {
		asked := uint64(0)
		c := probeCache(t.Context(), tg, question, func(context.Context) (statistics, error) {
			n := asked
			asked += moved
			return statistics{Inferences: 7 + n}, nil
		})
		if c.Passed != want {
			t.Errorf("two questions, %d inferences: %+v", moved, c)
		}
	}
}

func TestTargets(t *testing.T) {
	for _, bad := range []attest.Target{
		{Protocol: "oip", URL: "http://h", Model: "m"},
		{Protocol: Name, URL: "h:80", Model: "m"},
		{Protocol: Name, URL: "http://user:secret@h", Model: "m"},
		{Protocol: Name, URL: "http://h", Model: "m", Options: `{"tokenFrom":"ASSAY_TEST_NO_SUCH_VARIABLE"}`},
		{Protocol: Name, URL: "http://h", Model: "m", Options: `{"token":"secret"}`},
		{Protocol: NameGRPC, URL: "http://h", Model: "m"},
		{Protocol: NameGRPC, URL: "grpc://h/path", Model: "m"},
	} {
		_, err1 := New(bad)
		_, err2 := NewGRPC(bad)
		if err1 == nil || err2 == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"model_name":"m","id":"1","outputs":[{"name":"p","shape":[1,2],"datatype":"FP32","data":[1,2]}]}`), 0)
	f.Add([]byte(`{"model_name":"m","id":"1","outputs":[{"name":"p","shape":[1],"datatype":"BF16","parameters":{"binary_data_size":2}}]}xx`), 103)
	raw, _ := base64.StdEncoding.DecodeString("CgFtGgExKgwKAXASBEZQMzIaAQEyBAAAAAA=")
	f.Add(raw, -1)
	f.Add([]byte(`{"error":"no"}`), 0)
	f.Fuzz(func(t *testing.T, body []byte, header int) {
		q := target.Question{ID: "1", Model: "m", Outputs: []string{"p"}}
		r := target.Response{Status: 200, Body: body, Header: map[string]string{}}
		p := target.Protocol(Binary{})
		switch {
		case header > 0:
			b, _ := json.Marshal(header)
			r.Header["Inference-Header-Content-Length"] = string(b)
		case header < 0:
			p, r.Header["Grpc-Status"] = GRPC{}, "0"
		}
		a, err := p.Decode(q, r)
		if (a == nil) == (err == nil) {
			t.Errorf("answer %v and error %v", a, err)
		}
		if a != nil {
			if len(a.Outputs) != 1 || a.Outputs[0].Name != "p" {
				t.Errorf("outputs %+v", a.Outputs)
			}
			if err := tensor.Check(a.Outputs[0]); err != nil {
				t.Error(err)
			}
		}
	})
}
