package ingest

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"pgregory.net/rapid"
)

func numbers(list ...string) (out []json.Number) {
	for _, n := range list {
		out = append(out, json.Number(n))
	}
	return out
}

func same(t testing.TB, what string, got Tensor, datatype string, shape []int64, data ...string) {
	t.Helper()
	if got.Datatype != datatype || !slices.Equal(got.Shape, shape) || !slices.Equal(got.Data, numbers(data...)) {
		t.Errorf("%s is %+v, want %s %v %v", what, got, datatype, shape, data)
	}
}

// sound checks what is true of every result.
func sound(t testing.TB, r *Result) {
	t.Helper()
	if len(r.Cases) == 0 {
		t.Error("a result without cases, and no error")
	}
	seen := map[string]bool{}
	for _, c := range r.Cases {
		if c.ID == "" || strings.ContainsAny(c.ID, "/\n") || seen[c.ID] {
			t.Errorf("id %q", c.ID)
		}
		seen[c.ID] = true
		if len(c.Inputs) == 0 {
			t.Errorf("case %s has no inputs", c.ID)
		}
		for _, part := range []map[string]Tensor{c.Inputs, c.Outputs} {
			for name, tensor := range part {
				if n, err := elements(tensor.Shape); err != nil || n != len(tensor.Data) {
					t.Errorf("case %s: %s has %d numbers for shape %v", c.ID, name, len(tensor.Data), tensor.Shape)
				}
				if raw, err := json.Marshal(tensor.Data); err != nil || !json.Valid(raw) {
					t.Errorf("case %s: %s is no JSON: %v", c.ID, name, err)
				}
			}
		}
	}
}

func noted(t testing.TB, r *Result, words ...string) {
	t.Helper()
	for _, w := range words {
		if !slices.ContainsFunc(r.Notes, func(n string) bool { return strings.Contains(n, w) }) {
			t.Errorf("nothing is said of %q: %q", w, r.Notes)
		}
	}
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestONNX(t *testing.T) {
	r, err := ONNX("testdata/onnx", Options{Prefix: "zoo-"})
	if err != nil {
		t.Fatal(err)
	}
	sound(t, r)
	if len(r.Cases) != 2 || len(r.Notes) != 0 || r.Cases[1].ID != "zoo-test_data_set_1" {
		t.Fatalf("%+v", r)
	}
	same(t, "input", r.Cases[0].Inputs["features"], "FP32", []int64{1, 3}, "1.5", "-2.25", "0.1")
	same(t, "output", r.Cases[0].Outputs["probabilities"], "FP32", []int64{1, 2}, "0.25", "0.75")

	// One folder alone; what is no tensor is named, and a case without one of
	// its inputs is none.
	dir := t.TempDir()
	for name, data := range map[string][]byte{
		"test_data_set_0/input_0.pb": read(t, "onnx/test_data_set_0/input_0.pb"), "test_data_set_0/output_0.pb": []byte("\xff\xff"), "test_data_set_0/README": []byte("x"),
		"test_data_set_1/input_0.pb": read(t, "tensorproto/STRING.typed.pb"),
		"test_data_set_2/input_0.pb": read(t, "onnx/test_data_set_0/input_0.pb"), "test_data_set_2/input_1.pb": read(t, "onnx/test_data_set_0/input_0.pb"),
		"test_data_set_3/output_0.pb": read(t, "onnx/test_data_set_0/output_0.pb"),
	} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r, err = ONNX(dir, Options{})
	if err != nil || len(r.Cases) != 1 {
		t.Fatalf("%+v %v", r, err)
	}
	noted(t, r, "test_data_set_0: output_0.pb is left out", "README is left out", "test_data_set_1 is left out: input_0.pb: it is text", "is there twice", "test_data_set_3 is left out: it has no input_N.pb")
	for _, none := range []string{filepath.Join(dir, "test_data_set_1"), t.TempDir(), "testdata/nowhere", "testdata/arrays.npz"} {
		if _, err := ONNX(none, Options{}); err == nil {
			t.Errorf("%s is taken", none)
		}
	}
}

// Every type that onnx writes, in both ways it holds elements.
func TestTensorProto(t *testing.T) {
	var want map[string][]json.Number
	if err := json.Unmarshal(read(t, "tensorproto/want.json"), &want); err != nil {
		t.Fatal(err)
	}
	words := map[string]string{"FLOAT": "FP32", "DOUBLE": "FP64", "FLOAT16": "FP16"}
	for name, data := range want {
		for _, how := range []string{"raw", "typed"} {
			got, tensor, err := ParseTensorProto(read(t, "tensorproto/"+name+"."+how+".pb"))
			if err != nil || got != name {
				t.Errorf("%s.%s: %q %v", name, how, got, err)
				continue
			}
			datatype := words[name]
			if datatype == "" {
				datatype = name
			}
			var texts []string
			for _, n := range data {
				f, _ := n.Float64()
				texts = append(texts, fmt.Sprint(f))
			}
			same(t, name+"."+how, tensor, datatype, []int64{2, 3}, texts...)
		}
	}
	_, tensor, err := ParseTensorProto(read(t, "tensorproto/BFLOAT16.typed.pb"))
	if err != nil {
		t.Fatal(err)
	}
	same(t, "BFLOAT16", tensor, "BF16", []int64{2}, "1.5", "-2")
	for name, raw := range map[string][]byte{
		"text": read(t, "tensorproto/STRING.typed.pb"), "empty": {}, "cut": read(t, "tensorproto/FLOAT.raw.pb")[:20],
		"external": protowire.AppendVarint(protowire.AppendTag(protowire.AppendVarint(protowire.AppendTag(nil, 2, protowire.VarintType), 1), 14, protowire.VarintType), 1),
	} {
		if _, _, err := ParseTensorProto(raw); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func TestNPZ(t *testing.T) {
	opt := Options{Outputs: []string{"probabilities"}, Label: "labels"}
	r, err := NPZ(read(t, "arrays.npz"), opt)
	if err != nil {
		t.Fatal(err)
	}
	sound(t, r)
	noted(t, r, "names is left out")
	if len(r.Cases) != 2 || len(r.Notes) != 1 {
		t.Fatalf("%+v", r)
	}
	c := r.Cases[1]
	same(t, "features", c.Inputs["features"], "FP32", []int64{1, 3}, "3", "4", "5")
	same(t, "Fortran", c.Inputs["fortran"], "INT16", []int64{1, 3}, "3", "4", "5")
	same(t, "big-endian", r.Cases[0].Inputs["big"], "FP64", []int64{1, 3}, "1.5", "-2.25", "0.10000000149011612")
	same(t, "half", c.Inputs["half"], "FP16", []int64{1}, "-65504")
	same(t, "output", c.Outputs["probabilities"], "FP32", []int64{1, 2}, "0.5", "0.5")
	if r.Cases[0].Label != "1" || c.Label != "0" {
		t.Errorf("labels %q %q", r.Cases[0].Label, c.Label)
	}
	// Named inputs; what was not named is said.
	r, err = NPZ(read(t, "arrays.npz"), Options{Inputs: []string{"features"}})
	if err != nil || len(r.Cases[0].Inputs) != 1 {
		t.Fatalf("%+v %v", r, err)
	}
	noted(t, r, "big is left out: it was not named", "labels is left out: it was not named")
	// As one case.
	r, err = NPZ(read(t, "other.npz"), Options{Whole: true})
	if err != nil || len(r.Cases) != 1 || !slices.Equal(r.Cases[0].Inputs["y"].Shape, []int64{4, 2}) {
		t.Errorf("%+v %v", r, err)
	}
	for name, opt := range map[string]Options{"rows that do not agree": {}, "a name that is not there": {Inputs: []string{"z"}}} {
		if _, err := NPZ(read(t, "other.npz"), opt); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := NPZ(read(t, "arrays.npz"), Options{Inputs: []string{"names"}}); err == nil {
		t.Error("text that was named as an input is taken")
	}
	a, err := parseNPY(read(t, "version2.npy"))
	if err != nil || a.datatype != "FP32" || !slices.Equal(a.shape, []int64{2, 3}) {
		t.Errorf("version 2: %+v %v", a, err)
	}
}

func TestMLflow(t *testing.T) {
	for name, tt := range map[string]struct {
		raw   string
		opt   Options
		cases int
		check func(r *Result)
	}{
		"split": {`{"columns":["age","income","ok"],"index":[0,1],"data":[[30,1000.5,true],[41,2e3,false]]}`, Options{}, 2, func(r *Result) {
			same(t, "age", r.Cases[1].Inputs["age"], "FP32", []int64{1, 1}, "41")
			same(t, "ok", r.Cases[0].Inputs["ok"], "FP32", []int64{1, 1}, "1")
			noted(t, r, "it names no type")
		}},
		"split, joined, with a label": {`{"columns":["b","a","y"],"data":[[1,2,"yes"]]}`, Options{Join: "features", Label: "y", Datatype: "FP64"}, 1, func(r *Result) {
			same(t, "features", r.Cases[0].Inputs["features"], "FP64", []int64{1, 2}, "1", "2")
			if r.Cases[0].Label != "yes" || len(r.Notes) != 0 {
				t.Errorf("%+v", r)
			}
		}},
		"wrapped split": {`{"dataframe_split":{"columns":["a"],"data":[[1]]},"params":{"x":1}}`, Options{}, 1, func(r *Result) { noted(t, r, `"params" is left out`) }},
		"records":       {`{"dataframe_records":[{"a":1,"b":[1,2]},{"a":2,"b":[3,4]}]}`, Options{}, 2, func(r *Result) { same(t, "b", r.Cases[1].Inputs["b"], "FP32", []int64{1, 2}, "3", "4") }},
		"instances":     {`{"instances":[[1,2],[3,4]]}`, Options{}, 2, func(r *Result) { noted(t, r, `called "input"`) }},
		"instances named": {`{"instances":[[[1,2],[3,4]]]}`, Options{Inputs: []string{"image"}, Datatype: "FP32"}, 1, func(r *Result) {
			same(t, "image", r.Cases[0].Inputs["image"], "FP32", []int64{1, 2, 2}, "1", "2", "3", "4")
		}},
		"inputs":    {`{"inputs":{"a":[[1],[2]],"b":[3,4]}}`, Options{}, 2, func(r *Result) { same(t, "b", r.Cases[1].Inputs["b"], "FP32", []int64{1, 1}, "4") }},
		"bare list": {`[[1,2,3]]`, Options{}, 1, func(r *Result) { same(t, "input", r.Cases[0].Inputs["input"], "FP32", []int64{1, 3}, "1", "2", "3") }},
		"text and null": {`{"columns":["a"],"data":[[1],["text"],[null],[[1,[2]]]]}`, Options{}, 1, func(r *Result) {
			noted(t, r, `row 1 is left out: a: "text" is text`, "row 2 is left out: a: it has a null", "row 3 is left out")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := MLflow([]byte(tt.raw), tt.opt)
			if err != nil {
				t.Fatal(err)
			}
			sound(t, r)
			if len(r.Cases) != tt.cases {
				t.Errorf("%d cases, want %d: %+v", len(r.Cases), tt.cases, r)
			}
			tt.check(r)
		})
	}
	for _, bad := range []string{``, `{}`, `3`, `{"columns":["a","a"],"data":[[1,2]]}`, `{"columns":["a"],"data":[[1,2]]}`, `{"columns":["a"],"data":[]}`, `{"inputs":{"a":[1],"b":[1,2]}}`, `{"inputs":{"a":3}}`, `{"instances":[]}`, `{"columns":["a"],"data":[["x"]]}`, `{"instances":[[1]]} trailing`, `{"messages":[]}`} {
		if r, err := MLflow([]byte(bad), Options{}); err == nil {
			t.Errorf("%s is taken: %+v", bad, r)
		}
	}
}

func TestRequests(t *testing.T) {
	r, err := Requests([]byte(`{"id":"a/b","inputs":[{"name":"features","datatype":"FP32","shape":[1,2],"data":[1,2.5]}],"parameters":{}}

{"inputs":[{"name":"features","datatype":"INT64","shape":[1,2],"data":[[9007199254740993,-1]]}]}
{"instances":[[1],[2]]}
{"model":"m","messages":[{"role":"user","content":"hello"}]}
{"custom_id":"1","method":"POST","url":"/v1/chat/completions","body":{}}
not JSON
{"inputs":[{"name":"features","datatype":"BYTES","shape":[1],"data":["x"]}]}
{"inputs":[{"name":"features","datatype":"FP32","shape":[2],"data":[1]}]}
{"id":"a/b","inputs":[{"name":"features","datatype":"FP32","shape":[1,2],"data":[1,2.5]}]}
`), Options{Prefix: "r"})
	if err != nil {
		t.Fatal(err)
	}
	sound(t, r)
	var ids []string
	for _, c := range r.Cases {
		ids = append(ids, c.ID)
	}
	if !slices.Equal(ids, []string{"a_b", "r000003", "r000004-000000", "r000004-000001"}) {
		t.Errorf("ids %q", ids)
	}
	same(t, "an integer beyond 2^53", r.Cases[1].Inputs["features"], "INT64", []int64{1, 2}, "9007199254740993", "-1")
	noted(t, r, `"parameters" is left out`, "line 5 is left out: it asks a language model", "line 6 is left out: it asks a language model", "line 7 is left out", "line 8 is left out: input features: type BYTES", "line 9 is left out", "line 10: case a_b is left out")
	for _, bad := range []string{"", "\n\n", "x\ny", `{"messages":[]}`} {
		if _, err := Requests([]byte(bad), Options{}); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// safetensors writes the format, as its documentation has it.
func safetensors(tensors map[string]array) []byte {
	header := map[string]any{"__metadata__": map[string]string{"by": "test"}}
	var data []byte
	names := map[string]string{}
	for st, oip := range safetensorTypes {
		names[oip] = st
	}
	for _, k := range sortedKeys(tensors) {
		a := tensors[k]
		header[k] = map[string]any{"dtype": names[a.datatype], "shape": a.shape, "data_offsets": []int{len(data), len(data) + len(a.raw)}}
		data = append(data, a.raw...)
	}
	head, err := json.Marshal(header)
	if err != nil {
		panic(err)
	}
	return append(append(binary.LittleEndian.AppendUint64(nil, uint64(len(head))), head...), data...)
}

func fp32(v ...float32) (raw []byte) {
	for _, x := range v {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(x))
	}
	return raw
}

func TestSafetensors(t *testing.T) {
	raw := safetensors(map[string]array{"x": {"FP32", []int64{3, 2}, fp32(1, 2, 3, float32(math.NaN()), 5, 6)}, "y": {"UINT8", []int64{3}, []byte{7, 8, 9}}})
	r, err := Safetensors(raw, Options{Label: "y"})
	if err != nil {
		t.Fatal(err)
	}
	sound(t, r)
	noted(t, r, "__metadata__", "row 1 is left out: x: element 1 is not finite")
	if len(r.Cases) != 2 || r.Cases[1].Label != "9" {
		t.Errorf("%+v", r)
	}
	r, err = Safetensors(safetensors(map[string]array{
		"a/in/x": {"FP32", []int64{1, 1}, fp32(1)}, "a/out/p": {"FP32", []int64{1}, fp32(2)}, "b/in/x": {"FP32", []int64{1, 1}, fp32(3)}, "c/out/p": {"FP32", []int64{1}, fp32(2)},
	}), Options{})
	if err != nil {
		t.Fatal(err)
	}
	sound(t, r)
	noted(t, r, "case c is left out: it has no inputs")
	if len(r.Cases) != 2 {
		t.Fatalf("%+v", r)
	}
	same(t, "golden", r.Cases[0].Outputs["p"], "FP32", []int64{1}, "2")
	for name, bad := range map[string][]byte{
		"empty": {}, "header beyond the file": {255, 0, 0, 0, 0, 0, 0, 0, '{'}, "huge header": {0, 0, 0, 0, 0, 0, 0, 255},
		"no header": append([]byte{2, 0, 0, 0, 0, 0, 0, 0}, "[]"...), "no tensors": append([]byte{2, 0, 0, 0, 0, 0, 0, 0}, "{}"...),
		"outside": append(binary.LittleEndian.AppendUint64(nil, 56), `{"x":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}} `...),
		"shape":   append(append(binary.LittleEndian.AppendUint64(nil, 64), fmt.Sprintf("%-64s", `{"x":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}`)[:64]...), 0),
	} {
		if _, err := Safetensors(bad, Options{}); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// npy writes version 1.0 of the format, as its documentation has it.
func npy(a array) []byte {
	descr := ""
	for k, v := range npyTypes {
		if v == a.datatype {
			descr = k
		}
	}
	var dims []string
	for _, d := range a.shape {
		dims = append(dims, fmt.Sprint(d)+",")
	}
	header := fmt.Sprintf("{'descr': '<%s', 'fortran_order': False, 'shape': (%s), }\n", descr, strings.Join(dims, " "))
	out := append([]byte("\x93NUMPY\x01\x00"), byte(len(header)), byte(len(header)>>8))
	return append(append(out, header...), a.raw...)
}

func archive(arrays map[string]array) []byte {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, a := range arrays {
		w, err := z.Create(name + ".npy")
		if err != nil {
			panic(err)
		}
		w.Write(npy(a))
	}
	z.Close()
	return b.Bytes()
}

func tensorProto(name string, a array) (raw []byte) {
	for _, d := range a.shape {
		raw = protowire.AppendVarint(protowire.AppendTag(raw, 1, protowire.VarintType), uint64(d))
	}
	for k, v := range onnxTypes {
		if v == a.datatype {
			raw = protowire.AppendVarint(protowire.AppendTag(raw, 2, protowire.VarintType), k)
		}
	}
	raw = protowire.AppendString(protowire.AppendTag(raw, 8, protowire.BytesType), name)
	return protowire.AppendBytes(protowire.AppendTag(raw, 9, protowire.BytesType), a.raw)
}

// bitsOf is the reverse of fromBits, for types whose numbers Go parses.
func bitsOf(t *rapid.T, x Tensor) (raw []byte) {
	for _, n := range x.Data {
		var bits uint64
		var err error
		switch x.Datatype {
		case "FP32":
			var f float64
			f, err = n.Float64()
			bits = uint64(math.Float32bits(float32(f)))
		case "FP64":
			var f float64
			f, err = n.Float64()
			bits = math.Float64bits(f)
		case "UINT64":
			_, err = fmt.Sscan(string(n), &bits)
		default:
			var i int64
			i, err = n.Int64()
			bits = uint64(i)
		}
		if err != nil {
			t.Fatal(err)
		}
		raw = append(raw, binary.LittleEndian.AppendUint64(nil, bits)[:types[x.Datatype].width]...)
	}
	return raw
}

// What is written in any of the formats is read back to the same bits.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		datatype := rapid.SampledFrom([]string{"FP32", "FP64", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"}).Draw(t, "type")
		a := array{datatype: datatype, shape: []int64{int64(rapid.IntRange(1, 3).Draw(t, "rows"))}}
		for range rapid.IntRange(0, 2).Draw(t, "axes") {
			a.shape = append(a.shape, int64(rapid.IntRange(1, 3).Draw(t, "axis")))
		}
		n, err := elements(a.shape)
		if err != nil {
			t.Fatal(err)
		}
		a.raw = rapid.SliceOfN(rapid.Byte(), n*types[datatype].width, n*types[datatype].width).Draw(t, "bits")
		if datatype == "FP32" || datatype == "FP64" {
			for i := types[datatype].width - 1; i < len(a.raw); i += types[datatype].width {
				a.raw[i] &= 0xbf // finite
			}
		}
		_, whole, err := ParseTensorProto(tensorProto("x", a))
		if err != nil || !bytes.Equal(bitsOf(t, whole), a.raw) || !slices.Equal(whole.Shape, a.shape) {
			t.Errorf("TensorProto: %+v %v", whole, err)
		}
		for name, read := range map[string]func(Options) (*Result, error){
			"npz":         func(o Options) (*Result, error) { return NPZ(archive(map[string]array{"x": a}), o) },
			"safetensors": func(o Options) (*Result, error) { return Safetensors(safetensors(map[string]array{"x": a}), o) },
		} {
			one, err := read(Options{Whole: true})
			if err != nil || !bytes.Equal(bitsOf(t, one.Cases[0].Inputs["x"]), a.raw) {
				t.Fatalf("%s, whole: %+v %v", name, one, err)
			}
			cut, err := read(Options{})
			if err != nil || len(cut.Cases) != int(a.shape[0]) {
				t.Fatalf("%s, rows: %+v %v", name, cut, err)
			}
			var raw []byte
			for _, c := range cut.Cases {
				raw = append(raw, bitsOf(t, c.Inputs["x"])...)
			}
			if !bytes.Equal(raw, a.raw) {
				t.Errorf("%s, rows: other bits", name)
			}
		}
	})
}

// Every half there is, against arithmetic on its parts done another way.
func TestHalf(t *testing.T) {
	for b, want := range map[uint16]float64{0x3c00: 1, 0xc000: -2, 0x7bff: 65504, 0x0001: 5.960464477539063e-08, 0x0400: 6.103515625e-05, 0x8000: 0, 0x3555: 0.333251953125} {
		if got := half(b); got != want {
			t.Errorf("half(%#x) = %v, want %v", b, got, want)
		}
	}
	last := math.Inf(-1)
	for b := range uint16(0x7c00) {
		if v := half(b); v <= last {
			t.Fatalf("half(%#x) = %v is not above %v", b, v, last)
		} else {
			last = v
		}
	}
	if !math.IsInf(half(0x7c00), 1) || !math.IsNaN(half(0x7e00)) {
		t.Error("infinity and NaN")
	}
}

func fuzz(f *testing.F, read func([]byte, Options) (*Result, error)) {
	f.Fuzz(func(t *testing.T, raw []byte, whole bool, join string) {
		r, err := read(raw, Options{Whole: whole, Join: join})
		if err == nil {
			sound(t, r)
		} else if r != nil {
			t.Error("a result and an error")
		}
	})
}

func FuzzNPZ(f *testing.F) {
	f.Add(read(f, "arrays.npz"), true, "")
	f.Add(read(f, "other.npz"), false, "")
	fuzz(f, NPZ)
}

func FuzzNPY(f *testing.F) {
	f.Add(read(f, "version2.npy"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if a, err := parseNPY(raw); err == nil && a.check() != nil {
			t.Errorf("%+v", a)
		}
	})
}

func FuzzSafetensors(f *testing.F) {
	f.Add(safetensors(map[string]array{"x": {"FP32", []int64{2, 1}, fp32(1, 2)}}), false, "")
	f.Add(safetensors(map[string]array{"a/in/x": {"FP32", []int64{1}, fp32(1)}}), false, "")
	fuzz(f, Safetensors)
}

func FuzzMLflow(f *testing.F) {
	f.Add([]byte(`{"columns":["a"],"data":[[1],["x"]]}`), false, "")
	f.Add([]byte(`{"inputs":{"a":[[1],[2]],"b":[3,4]}}`), false, "j")
	f.Add([]byte(`{"dataframe_records":[{"a":1}]}`), false, "")
	fuzz(f, MLflow)
}

func FuzzRequests(f *testing.F) {
	f.Add([]byte(`{"id":"a","inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2.5]}]}`+"\n"+`{"instances":[[1],[2]]}`), false, "")
	fuzz(f, Requests)
}

func FuzzTensorProto(f *testing.F) {
	f.Add(read(f, "tensorproto/FLOAT.raw.pb"))
	f.Add(read(f, "tensorproto/INT32.typed.pb"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, tensor, err := ParseTensorProto(raw)
		if err == nil {
			sound(t, &Result{Cases: []Case{{ID: "x", Inputs: map[string]Tensor{"x": tensor}}}})
		}
	})
}
