package targettest

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A Server speaks the Open Inference Protocol over REST, with tensors in JSON
// or, if it is asked so, as bytes. Its model m has one input "features" [-1,2]
// and one output "probabilities" [-1,2], computed by a function; its model echo
// answers with its inputs. Misbehaviour is set per request number.
type Server struct {
	*httptest.Server

	// Triton says that the server has the extensions model_configuration and
	// statistics.
	Triton bool

	// Threads and Precision are what the server declares of itself: 0 says nothing of
	// its threads, and "" is fp32. They change nothing.
	Threads   int
	Precision string

	// Cached, if set before the first request, makes the server answer a
	// question it has had before from a store, and own up to it in its
	// statistics alone.
	Cached bool

	mu         sync.Mutex
	model      func(in []float32) []float32 // guarded by mu, as all below
	misbehave  func(n int) string           // or nil
	requests   int
	inferences int               // computed, not stored
	hits       int               // stored
	store      map[string][]byte // answers by question
}

// Faults are the words that a server may be told to misbehave by.
var Faults = []string{
	"nan", "infinity", "shape", "dtype", "drop-output", "extra-output", "error-in-200", "wrong-id", "wrong-model", "wrong-version",
	"truncated", "http-500", "http-429", "hang", "close", "not-json", "duplicate-key", "null", "empty", "strings", "cached",
}

// BinaryFaults are further words, for tensors as bytes.
var BinaryFaults = []string{"size", "left-over", "header-length"}

// NewServer starts a server that behaves.
func NewServer(t testing.TB, model func([]float32) []float32) *Server {
	s := &Server{model: model}
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

// SetModel sets what computes an output row from an input row. The server declares
// two numbers, and answers with as many as there are.
func (s *Server) SetModel(f func(in []float32) []float32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.model = f
}

// SetMisbehave sets what is asked before each answer, with the number of the request
// from 1; "" is to behave, and so is nil. The words are those of Faults.
//
// It may be called between any two requests, and is a method because no client knows
// when a server is done with one: a connection that was closed may still have its
// handler.
func (s *Server) SetMisbehave(f func(n int) string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.misbehave = f
}

// Requests is the number of inferences asked for.
func (s *Server) Requests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	switch path := strings.Replace(r.URL.Path, "/versions/1", "", 1); path {
	case "/v2":
		more := ""
		if s.Triton {
			more = `,"model_configuration","statistics"`
		}
		fmt.Fprint(w, `{"name":"fake","version":"1","extensions":["binary_tensor_data"`+more+`]}`)
	case "/v2/models/m/ready":
	case "/v2/models/m":
		threads := ""
		if s.Threads > 0 {
			threads = fmt.Sprintf(`,"threads":"%d"`, s.Threads)
		}
		fmt.Fprintf(w, `{"name":"m","versions":["1"],"platform":"fake","inputs":[{"name":"features","datatype":"FP32","shape":[-1,2]}],"outputs":[{"name":"probabilities","datatype":"FP32","shape":[-1,2]}],"parameters":{"precision":%q%s}}`, cmp.Or(s.Precision, "fp32"), threads)
	case "/v2/models/m/config":
		fmt.Fprintf(w, `{"name":"m","backend":"fake","max_batch_size":1024,"instance_group":[{"name":"m_0","kind":"KIND_CPU","count":1,"gpus":[]}],"response_cache":{"enable":%v},"dynamic_batching":{"max_queue_delay_microseconds":"100"},"parameters":{"precision":{"string_value":"fp32"}}}`, s.Cached)
	case "/v2/models/m/stats":
		s.mu.Lock()
		defer s.mu.Unlock()
		fmt.Fprintf(w, `{"model_stats":[{"name":"m","version":"1","inference_count":%d,"execution_count":%[1]d,"inference_stats":{"success":{"count":%d,"ns":1},"cache_hit":{"count":%d,"ns":1}},"batch_stats":[]}]}`, s.inferences, s.inferences+s.hits, s.hits)
	case "/v2/models/m/infer", "/v2/models/echo/infer":
		s.infer(w, r, strings.Split(path, "/")[3])
	default:
		http.Error(w, `{"error":"no such model"}`, http.StatusNotFound)
	}
}

// A fakeTensor is an output, in both forms.
type fakeTensor struct {
	Name       string                     `json:"name"`
	Shape      json.RawMessage            `json:"shape"`
	Datatype   string                     `json:"datatype"`
	Data       json.RawMessage            `json:"data,omitempty"`
	Parameters map[string]json.RawMessage `json:"parameters,omitempty"`
	bits       []byte
}

func (s *Server) infer(w http.ResponseWriter, r *http.Request, model string) {
	s.mu.Lock()
	s.requests++
	n := s.requests
	s.mu.Unlock()
	refuse := func(format string, a ...any) {
		w.WriteHeader(http.StatusBadRequest)
		json.NewEncoder(w).Encode(map[string]string{"error": fmt.Sprintf(format, a...)})
	}
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		return // the client went away
	}
	head, rest := raw, []byte(nil)
	if v := r.Header.Get("Inference-Header-Content-Length"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n <= 0 || n > len(raw) {
			refuse("Inference-Header-Content-Length is %q", v)
			return
		}
		head, rest = raw[:n], raw[n:]
	}
	var q struct {
		ID      string       `json:"id"`
		Inputs  []fakeTensor `json:"inputs"`
		Outputs []fakeTensor `json:"outputs"`
	}
	if err := json.Unmarshal(head, &q); err != nil {
		refuse("the request is no JSON: %v", err)
		return
	}
	for i := range q.Inputs {
		in := &q.Inputs[i]
		if size, ok := in.Parameters["binary_data_size"]; ok {
			n, err := strconv.Atoi(string(size))
			if err != nil || n > len(rest) {
				refuse("input %s: binary_data_size is %s and %d bytes are left", in.Name, size, len(rest))
				return
			}
			in.bits, rest = rest[:n], rest[n:]
		}
	}
	asBytes := len(q.Outputs) > 0 && string(q.Outputs[0].Parameters["binary_data"]) == "true"
	var outputs []fakeTensor
	if model == "echo" {
		for _, in := range q.Inputs {
			outputs = append(outputs, fakeTensor{Name: in.Name, Shape: in.Shape, Datatype: in.Datatype, Data: in.Data, bits: in.bits})
		}
	} else {
		good, err := s.compute(q.Inputs)
		if err != nil {
			refuse("%v", err)
			return
		}
		outputs = []fakeTensor{good}
	}
	s.mu.Lock()
	misbehave := s.misbehave
	s.mu.Unlock()
	fault := ""
	if misbehave != nil {
		fault = misbehave(n)
	}
	a := fakeAnswer{ID: q.ID, Model: model, Version: "1", Outputs: outputs}
	first := &a.Outputs[0]
	set := func(data string, bits ...float32) {
		first.Data, first.bits = json.RawMessage(data), nil
		for _, v := range bits {
			first.bits = binary.LittleEndian.AppendUint32(first.bits, math.Float32bits(v))
		}
	}
	switch fault {
	case "nan":
		set("[NaN,0.5]", float32(math.NaN()), 0.5)
	case "infinity":
		set("[1e99,0.5]", float32(math.Inf(1)), 0.5)
	case "null":
		set("[null,0.5]")
	case "strings":
		set(`["0.5","0.5"]`)
	case "shape":
		first.Shape = json.RawMessage("[1,3]")
		set("[0.1,0.2,0.7]", 0.1, 0.2, 0.7)
	case "dtype":
		first.Datatype = "FP64"
		first.bits = make([]byte, 16)
	case "drop-output":
		a.Outputs = nil
	case "extra-output":
		a.Outputs = append(a.Outputs, fakeTensor{Name: "more", Shape: json.RawMessage("[1]"), Datatype: "FP32", Data: json.RawMessage("[1]"), bits: make([]byte, 4)})
	case "wrong-id":
		a.ID = "another"
	case "wrong-model":
		a.Model = "n"
	case "wrong-version":
		a.Version = "2"
	}
	body, length := a.render(asBytes, fault)
	s.mu.Lock()
	if old, ok := s.store[string(raw)]; ok && s.Cached {
		s.hits++
		body = old
	} else {
		s.inferences++
		if s.Cached {
			if s.store == nil {
				s.store = map[string][]byte{}
			}
			s.store[string(raw)] = body
		}
	}
	s.mu.Unlock()
	switch fault {
	case "error-in-200":
		body, length = []byte(`{"error":"CUDA out of memory"}`), 0
	case "duplicate-key":
		body = []byte(strings.Replace(string(body), `"id"`, `"model_version":"1","id"`, 1))
		if length > 0 {
			length += len(`"model_version":"1",`)
		}
	case "not-json":
		body, length = []byte("<html>busy</html>"), 0
	case "empty":
		body, length = nil, 0
	case "header-length":
		length = len(body) + 1
	case "left-over":
		body = append(body, 0)
	case "cached":
		w.Header().Set("Age", "17")
	case "truncated":
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		body = body[:len(body)/2]
	}
	if length > 0 {
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Inference-Header-Content-Length", strconv.Itoa(length))
	}
	if Misbehave(w, r, fault) {
		w.Write(body)
	}
}

// Misbehave does what is not about the content of an answer: fail, hang,
// close. It says whether the answer is still to be written.
func Misbehave(w http.ResponseWriter, r *http.Request, fault string) bool {
	switch fault {
	case "http-500":
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprint(w, `{"error":"internal"}`)
	case "http-429":
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
		fmt.Fprint(w, `{"error":"slow down"}`)
	case "hang":
		select {
		case <-r.Context().Done():
		case <-time.After(30 * time.Second):
		}
	case "close":
		panic(http.ErrAbortHandler)
	default:
		return true
	}
	return false
}

// compute answers with the model.
func (s *Server) compute(inputs []fakeTensor) (out fakeTensor, err error) {
	if len(inputs) != 1 || inputs[0].Datatype != "FP32" {
		return out, fmt.Errorf("one input of FP32 is expected")
	}
	in := inputs[0]
	var features []float32
	if in.bits != nil {
		for b := in.bits; len(b) >= 4; b = b[4:] {
			features = append(features, math.Float32frombits(binary.LittleEndian.Uint32(b)))
		}
	} else if err := json.Unmarshal(in.Data, &features); err != nil {
		return out, fmt.Errorf("the data are no numbers: %w", err)
	}
	var shape []int
	if json.Unmarshal(in.Shape, &shape) != nil || len(shape) != 2 || shape[1] != 2 || len(features) != shape[0]*2 {
		return out, fmt.Errorf("one input of shape [n,2] is expected")
	}
	s.mu.Lock()
	row := s.model
	s.mu.Unlock()
	var values []float32
	for ; len(features) > 0; features = features[2:] {
		values = append(values, row(features[:2])...)
	}
	out = fakeTensor{Name: "probabilities", Datatype: "FP32", Shape: json.RawMessage(fmt.Sprintf("[%d,%d]", shape[0], len(values)/max(1, shape[0])))}
	for _, v := range values {
		out.bits = binary.LittleEndian.AppendUint32(out.bits, math.Float32bits(v))
	}
	out.Data, err = json.Marshal(values)
	return out, err
}

type fakeAnswer struct {
	ID, Model, Version string
	Outputs            []fakeTensor
}

// render writes an answer, and says how long its JSON is if bytes follow.
func (a fakeAnswer) render(asBytes bool, fault string) (body []byte, length int) {
	// Not with encoding/json: it would refuse NaN.
	text := fmt.Sprintf(`{"model_name":%q,"model_version":%q,"id":%q,"outputs":[`, a.Model, a.Version, a.ID)
	var bits []byte
	for i, o := range a.Outputs {
		if i > 0 {
			text += ","
		}
		if asBytes {
			size := len(o.bits)
			if fault == "size" {
				size++
			}
			text += fmt.Sprintf(`{"name":%q,"shape":%s,"datatype":%q,"parameters":{"binary_data_size":%d}}`, o.Name, o.Shape, o.Datatype, size)
			bits = append(bits, o.bits...)
		} else {
			text += fmt.Sprintf(`{"name":%q,"shape":%s,"datatype":%q,"data":%s}`, o.Name, o.Shape, o.Datatype, o.Data)
		}
	}
	text += "]}"
	if !asBytes {
		return []byte(text), 0
	}
	return append([]byte(text), bits...), len(text)
}
