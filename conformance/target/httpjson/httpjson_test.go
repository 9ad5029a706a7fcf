package httpjson

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/conformance/target/targettest"
	"github.com/assay-dev/assay/verify/attest"
)

// A service answers with what it was sent, in a shape of its own.
type service struct {
	*httptest.Server
	requests atomic.Int64
}

func (s *service) Requests() int { return int(s.requests.Load()) }

func serve(t testing.TB, path string, fault func(int) string, answer func(q map[string]json.RawMessage, fault string) string) *service {
	s := &service{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" {
			fmt.Fprint(w, "up")
			return
		}
		raw, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		var q map[string]json.RawMessage
		if r.URL.Path != path || json.Unmarshal(raw, &q) != nil {
			http.Error(w, `{"error":"no such thing"}`, http.StatusNotFound)
			return
		}
		fault := fault(int(s.requests.Add(1)))
		body := answer(q, fault)
		version := "1"
		if fault == "wrong-version" {
			version = "2"
		}
		if fault != "no-version" {
			w.Header().Set("Azureml-Model-Deployment", version)
		}
		switch fault {
		case "error-in-200":
			body = `{"error":"out of memory","fault":"out of memory"}`
		case "not-json":
			body = "<html>busy</html>"
		case "empty":
			body = ""
		case "cached":
			w.Header().Set("Age", "0")
		case "truncated":
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			body = body[:len(body)/2]
		}
		if targettest.Misbehave(w, r, fault) {
			fmt.Fprint(w, body)
		}
	}))
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

func faults() map[string]string {
	return map[string]string{
		"http-500": "http", "http-429": "http", "hang": "timeout", "close": "connection", "empty": "truncated", "not-json": "malformed", "truncated": "truncated",
		"error-in-200": "error-in-200", "wrong-version": "wrong-version", "no-version": "wrong-version", "cached": "cached",
	}
}

func open(t testing.TB, url, options string) target.Target {
	t.Helper()
	tg, err := New(attest.Target{Protocol: Name, URL: url, Model: "m", Version: "1", Options: options})
	if err != nil {
		t.Fatal(err)
	}
	return tg
}

// TensorFlow Serving's predict, and KServe v1: "instances" are rows, and
// "predictions" too.
func TestPredict(t *testing.T) {
	const options = `{"path":"/v1/models/${model}:predict","body":{"signature_name":"serving_default","instances":"${inputs/features}"},
		"inputs":[{"name":"features","datatype":"FP32","shape":[-1,2]}],"outputs":[{"name":"probabilities","at":"/predictions","datatype":"FP32","shape":[-1,2]}],"version":"header:azureml-model-deployment"}`
	in := targettest.FP32("features", []int64{2, 2}, 0.1, 0.5, 1e-45, 16777217)
	f := faults()
	for k, v := range map[string]string{"nan": "not-finite", "ragged": "malformed", "shape": "malformed", "flat-odd": "malformed", "flat": "malformed", "object": "malformed", "drop-output": "missing-output", "other": targettest.Answer} {
		f[k] = v
	}
	targettest.Test(t, targettest.Subject{
		Open: func(t testing.TB, fault func(int) string) (target.Target, targettest.Environment) {
			s := serve(t, "/v1/models/m:predict", fault, func(q map[string]json.RawMessage, fault string) string {
				predictions := string(q["instances"])
				switch fault {
				case "nan":
					predictions = "[[NaN,0.5],[1,2]]"
				case "ragged":
					predictions = "[[1,2],[3]]"
				case "shape":
					predictions = "[[1,2,3],[4,5,6]]"
				case "flat-odd":
					predictions = "[1,2,3]"
				case "flat":
					predictions = "[[1,2],3]"
				case "object":
					predictions = `[{"p":1}]`
				case "other":
					predictions = "[[1,2],[3,4]]"
				case "drop-output":
					return `{"outputs":[]}`
				}
				return `{"predictions":` + predictions + `}`
			})
			return open(t, s.URL, options), s
		},
		Question: target.Question{ID: "case-1", Model: "m", Version: "1", Inputs: []compare.Tensor{in}, Outputs: []string{"probabilities"}},
		Check: func(t testing.TB, a *target.Answer) {
			t.Helper()
			if len(a.Outputs) != 1 || string(a.Outputs[0].Bits) != string(in.Bits) || len(a.Outputs[0].Shape) != 2 || a.Version != "1" {
				t.Errorf("%+v", a)
			}
		},
		Faults:  f,
		Excused: map[string]string{"wrong-id": "this service has no id", "wrong-model": "this service does not name its model"},
		Bad: map[string]target.Question{
			"JSON":          {ID: "1", Model: "m", Request: json.RawMessage(`{}`)},
			"another input": {ID: "1", Model: "m", Inputs: []compare.Tensor{targettest.FP32("x", []int64{1}, 1)}},
		},
	})
}

// A scoring service of somebody's own, which says what it answers to.
func TestScore(t *testing.T) {
	const options = `{"path":"/score","body":{"requestId":"${id}","model":"${model}/${version}","applicant":"${request/applicant}","all":["${request}",1.50,null]},
		"headers":{"X-Model":"${model}"},"id":"/meta/requestId","model":"/meta/model~1name","version":"/meta/version","value":"/result/0","error":"/fault","ready":"/health"}`
	f := faults()
	delete(f, "no-version")
	for k, v := range map[string]string{"wrong-id": "wrong-id", "wrong-model": "wrong-model", "no-meta": "wrong-id", "null": "missing-output", "no-result": "missing-output", "other": targettest.Answer} {
		f[k] = v
	}
	targettest.Test(t, targettest.Subject{
		Open: func(t testing.TB, fault func(int) string) (target.Target, targettest.Environment) {
			s := serve(t, "/score", fault, func(q map[string]json.RawMessage, fault string) string {
				id, model, version, result := string(q["requestId"]), "m", `1`, fmt.Sprintf(`{"b":%s,"a":0.50}`, q["applicant"])
				switch fault {
				case "wrong-id":
					id = `"another"`
				case "wrong-model":
					model = "n"
				case "wrong-version":
					version = `"2"`
				case "null":
					result = "null"
				case "other":
					result = "{}"
				case "no-result":
					return fmt.Sprintf(`{"meta":{"requestId":%s,"model/name":%q,"version":%s},"result":[]}`, id, model, version)
				case "no-meta":
					return `{"result":[1]}`
				}
				return fmt.Sprintf(`{"meta":{"requestId":%s,"model/name":%q,"version":%s},"result":[%s]}`, id, model, version, result)
			})
			return open(t, s.URL, options), s
		},
		Question: target.Question{ID: "case-1", Model: "m", Version: "1", Request: json.RawMessage(`{"applicant":{"y":2,"x":1}}`)},
		Check: func(t testing.TB, a *target.Answer) {
			t.Helper()
			if string(a.Value) != `{"a":0.5,"b":{"x":1,"y":2}}` {
				t.Errorf("%s", a.Value)
			}
		},
		Faults: f,
		Bad: map[string]target.Question{
			"no applicant":     {ID: "1", Model: "m", Request: json.RawMessage(`{}`)},
			"neither":          {ID: "1", Model: "m"},
			"names used twice": {ID: "1", Model: "m", Request: json.RawMessage(`{"applicant":1,"applicant":2}`)},
			"tensors":          {ID: "1", Model: "m", Inputs: []compare.Tensor{targettest.FP32("x", []int64{1}, 1)}},
		},
	})
}

// The bytes are hashed: they must not change.
func TestBytes(t *testing.T) {
	p, err := NewProtocol(attest.Target{Protocol: Name, Model: "m", Options: `{"path":"/x","body":{"b":"${inputs/x/flat}","c":"${inputs/x/shape}","a":{"n":"${inputs/x}","id":"no ${id}!","model":"${model}"}},"inputs":[{"name":"x","datatype":"FP64","shape":[2,1]}]}`})
	if err != nil {
		t.Fatal(err)
	}
	q := target.Question{ID: "7", Model: "m", Inputs: []compare.Tensor{{Name: "x", Datatype: "FP64", Shape: []int64{2, 1}, Bits: append(make([]byte, 8), 0, 0, 0, 0, 0, 0, 0xf8, 0x3f)}}}
	got, err := p.Encode(q)
	if want := `{"a":{"id":"no 7!","model":"m","n":[[0],[1.5]]},"b":[0,1.5],"c":[2,1]}`; err != nil || string(got) != want {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
}

// A flat list is given the declared shape, if it fits.
func TestReshape(t *testing.T) {
	for _, c := range []struct {
		n              int64
		declared, want []int64
	}{{6, []int64{-1, 2}, []int64{3, 2}}, {6, []int64{3, 2}, []int64{3, 2}}, {7, []int64{-1, 2}, []int64{7}}, {6, []int64{2, 2}, []int64{6}}, {6, []int64{-1, -1}, []int64{6}}, {0, []int64{-1, 0}, []int64{0}}} {
		if got := reshape(c.n, c.declared); !slices.Equal(got, c.want) {
			t.Errorf("%d as %v: %v, want %v", c.n, c.declared, got, c.want)
		}
	}
}

func TestOptions(t *testing.T) {
	for what, options := range map[string]string{
		"nothing":                       `{}`,
		"no slash":                      `{"path":"x","body":{}}`,
		"an unknown variable":           `{"path":"/x","body":{"a":"${secret}"}}`,
		"a variable within a text":      `{"path":"/x","body":{"a":"x${request}"}}`,
		"an input that is not declared": `{"path":"/x","body":{"a":"${inputs/x}"}}`,
		"a datatype of ours":            `{"path":"/x","body":{},"outputs":[{"name":"p","datatype":"FP8","shape":[]}]}`,
		"outputs and a value":           `{"path":"/x","body":{},"value":"/v","outputs":[{"name":"p","datatype":"FP32","shape":[]}]}`,
		"no pointer":                    `{"path":"/x","body":{},"value":"v"}`,
		"a header that is not kept":     `{"path":"/x","body":{},"version":"header:X-Mine"}`,
		"an unknown field":              `{"path":"/x","body":{},"verb":"PUT"}`,
	} {
		if _, err := NewProtocol(attest.Target{Protocol: Name, Options: options}); err == nil {
			t.Errorf("%s was accepted", what)
		} else {
			t.Log(err)
		}
	}
	if _, err := NewProtocol(attest.Target{Protocol: Name, Version: "1", Options: `{"path":"/x","body":{}}`}); err == nil {
		t.Error("a version is to answer, and nothing says where it would be")
	}
	for what, options := range map[string]string{
		"an id in the path":  `{"path":"/x/${id}","body":{}}`,
		"a secret":           `{"path":"/x","body":{},"headers":{"authorization":"Bearer x"}}`,
		"an id in a header":  `{"path":"/x","body":{},"headers":{"X-Id":"${id}"}}`,
		"an unset variable":  `{"path":"/x","body":{},"tokenFrom":"ASSAY_TEST_NO_SUCH_VARIABLE"}`,
		"an unknown in path": `{"path":"/x/${y}","body":{}}`,
	} {
		if _, err := New(attest.Target{Protocol: Name, URL: "http://h", Model: "m", Options: options}); err == nil {
			t.Errorf("%s was accepted", what)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"predictions":[[1,2],[3,4]],"v":"1"}`))
	f.Add([]byte(`{"predictions":[],"v":1,"error":null}`))
	p, err := NewProtocol(attest.Target{Protocol: Name, Version: "1", Options: `{"path":"/x","body":{},"version":"/v","outputs":[{"name":"p","at":"/predictions","datatype":"FP32","shape":[-1,2]}]}`})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		a, err := p.Decode(target.Question{ID: "1", Model: "m", Version: "1", Outputs: []string{"p"}}, target.Response{Status: 200, Body: body})
		if (a == nil) == (err == nil) {
			t.Errorf("answer %v and error %v", a, err)
		}
		if a != nil {
			if _, err := a.Outputs[0].Values(); err != nil || a.Version != "1" || len(a.Outputs[0].Shape) != 2 {
				t.Errorf("%+v, %v", a, err)
			}
		}
	})
}
