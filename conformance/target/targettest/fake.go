// Package targettest has a faithful server of the Open Inference Protocol
// that misbehaves on request, and the suite that every target adapter passes
// against such a server.
package targettest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// A Server serves a model with one input "features" [-1,2] and one output
// "probabilities" [-1,2], computed by Model. Misbehaviour is set per request
// number.
type Server struct {
	*httptest.Server

	// Model computes an output row from an input row.
	Model func(in []float32) []float32

	// Misbehave, unless nil, is asked before each answer, with the number of
	// the request from 1; "" is to behave. The words are those of Faults.
	Misbehave func(n int) string

	mu       sync.Mutex
	requests int // guarded by mu
}

// Faults are the words that Misbehave may say.
var Faults = []string{
	"nan", "infinity", "shape", "dtype", "drop-output", "extra-output", "error-in-200", "wrong-id", "wrong-model", "wrong-version",
	"truncated", "http-500", "http-429", "hang", "close", "not-json", "duplicate-key", "null", "empty", "strings",
}

// NewServer starts a server that behaves.
func NewServer(t testing.TB, model func([]float32) []float32) *Server {
	s := &Server{Model: model}
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
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
		fmt.Fprint(w, `{"name":"fake","version":"1","extensions":[]}`)
	case "/v2/models/m/ready":
	case "/v2/models/m":
		fmt.Fprint(w, `{"name":"m","versions":["1"],"platform":"fake","inputs":[{"name":"features","datatype":"FP32","shape":[-1,2]}],"outputs":[{"name":"probabilities","datatype":"FP32","shape":[-1,2]}],"parameters":{"precision":"fp32"}}`)
	case "/v2/models/m/infer":
		s.infer(w, r)
	default:
		http.Error(w, `{"error":"no such model"}`, http.StatusNotFound)
	}
}

func (s *Server) infer(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests++
	n := s.requests
	s.mu.Unlock()
	var q struct {
		ID     string `json:"id"`
		Inputs []struct {
			Name  string    `json:"name"`
			Shape []int64   `json:"shape"`
			Data  []float32 `json:"data"`
		} `json:"inputs"`
	}
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil || len(q.Inputs) != 1 || len(q.Inputs[0].Shape) != 2 || q.Inputs[0].Shape[1] != 2 {
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"error":"one input of shape [n,2] is expected"}`)
		return
	}
	var out []float32
	for in := q.Inputs[0].Data; len(in) >= 2; in = in[2:] {
		out = append(out, s.Model(in[:2])...)
	}
	data, err := json.Marshal(out)
	if err != nil {
		http.Error(w, `{"error":"`+err.Error()+`"}`, http.StatusInternalServerError)
		return
	}
	shape := fmt.Sprintf("[%d,2]", len(out)/2)
	output := func(name, shape, dtype, data string) string {
		return fmt.Sprintf(`{"name":%q,"shape":%s,"datatype":%q,"data":%s}`, name, shape, dtype, data)
	}
	good := output("probabilities", shape, "FP32", string(data))
	answer := func(id, model, version, outputs string) string {
		return fmt.Sprintf(`{"model_name":%q,"model_version":%q,"id":%q,"outputs":[%s]}`, model, version, id, outputs)
	}
	body := answer(q.ID, "m", "1", good)
	fault := ""
	if s.Misbehave != nil {
		fault = s.Misbehave(n)
	}
	switch fault {
	case "":
	case "nan":
		body = answer(q.ID, "m", "1", output("probabilities", shape, "FP32", "[NaN,0.5]"))
	case "infinity":
		body = answer(q.ID, "m", "1", output("probabilities", shape, "FP32", "[1e99,0.5]"))
	case "null":
		body = answer(q.ID, "m", "1", output("probabilities", shape, "FP32", "[null,0.5]"))
	case "strings":
		body = answer(q.ID, "m", "1", output("probabilities", shape, "FP32", `["0.5","0.5"]`))
	case "shape":
		body = answer(q.ID, "m", "1", output("probabilities", "[1,3]", "FP32", "[0.1,0.2,0.7]"))
	case "dtype":
		body = answer(q.ID, "m", "1", output("probabilities", shape, "FP64", string(data)))
	case "drop-output":
		body = answer(q.ID, "m", "1", "")
	case "extra-output":
		body = answer(q.ID, "m", "1", good+","+output("more", "[1]", "FP32", "[1]"))
	case "error-in-200":
		body = `{"error":"CUDA out of memory"}`
	case "wrong-id":
		body = answer("another", "m", "1", good)
	case "wrong-model":
		body = answer(q.ID, "n", "1", good)
	case "wrong-version":
		body = answer(q.ID, "m", "2", good)
	case "duplicate-key":
		body = strings.Replace(body, `"id"`, `"model_version":"1","id"`, 1)
	case "not-json":
		body = "<html>busy</html>"
	case "empty":
		body = ""
	case "truncated":
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		body = body[:len(body)/2]
	case "http-500":
		w.WriteHeader(http.StatusInternalServerError)
		body = `{"error":"internal"}`
	case "http-429":
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
		body = `{"error":"slow down"}`
	case "hang":
		select {
		case <-r.Context().Done():
		case <-time.After(30 * time.Second):
		}
		return
	case "close":
		panic(http.ErrAbortHandler)
	default:
		panic("targettest: unknown fault " + fault)
	}
	fmt.Fprint(w, body)
}
