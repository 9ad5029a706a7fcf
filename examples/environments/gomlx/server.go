package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// failures are the ways to answer badly.
var failures = []string{"nan", "shape", "dtype", "drop-output", "error-in-200", "http500", "slow", "die-after"}

type options struct {
	name, version string
	model, canary *model
	canaryShare   float64
	raw, permute  bool
	fail          string // one of failures; slow:DURATION, die-after:N
	failEvery     int
	parameters    map[string]string
}

type server struct {
	options
	requests atomic.Int64
}

type tensor struct {
	Name     string          `json:"name"`
	Shape    []int64         `json:"shape"`
	Datatype string          `json:"datatype"`
	Data     json.RawMessage `json:"data"`
}

type request struct {
	ID      string   `json:"id"`
	Inputs  []tensor `json:"inputs"`
	Outputs []struct {
		Name string `json:"name"`
	} `json:"outputs"`
}

// ServeHTTP implements http.Handler.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	model := "/v2/models/" + s.name
	path := r.URL.Path
	if rest, ok := strings.CutPrefix(path, model+"/versions/"+s.version); ok {
		path = model + rest
	}
	switch {
	case r.Method == "GET" && path == "/v2":
		answer(w, 200, map[string]any{"name": "gomlx-oip", "version": "1", "extensions": []string{}})
	case r.Method == "GET" && (path == "/v2/health/live" || path == "/v2/health/ready" || path == model+"/ready"):
		answer(w, 200, map[string]any{"ready": true})
	case r.Method == "GET" && path == model:
		pre := s.model.pre
		answer(w, 200, map[string]any{
			"name": s.name, "versions": []string{s.version}, "platform": "onnx_gomlx_simplego",
			"inputs":     []any{map[string]any{"name": pre.Input, "datatype": "FP32", "shape": []int{-1, len(pre.Mean)}}},
			"outputs":    []any{map[string]any{"name": pre.Output, "datatype": "FP32", "shape": []int{-1, len(pre.Labels)}}},
			"parameters": s.parameters,
		})
	case r.Method == "POST" && path == model+"/infer":
		s.infer(w, r)
	default:
		refuse(w, 404, "there is no %s %s here; the model is %s, version %s", r.Method, r.URL.Path, s.name, s.version)
	}
}

func answer(w http.ResponseWriter, status int, v any) {
	raw, err := json.Marshal(v)
	if err != nil {
		status, raw = 500, []byte(`{"error":"the answer cannot be encoded"}`)
	}
	w.WriteHeader(status)
	w.Write(raw)
}

func refuse(w http.ResponseWriter, status int, format string, args ...any) {
	answer(w, status, map[string]string{"error": fmt.Sprintf(format, args...)})
}

func (s *server) infer(w http.ResponseWriter, r *http.Request) {
	n := s.requests.Add(1)
	kind, value, _ := strings.Cut(s.fail, ":")
	if n%int64(max(s.failEvery, 1)) != 0 && kind != "die-after" {
		kind = ""
	}
	switch kind {
	case "http500":
		refuse(w, 500, "out of memory")
		return
	case "error-in-200":
		answer(w, 200, map[string]string{"error": "out of memory"})
		return
	case "slow":
		if d, err := time.ParseDuration(value); err == nil {
			time.Sleep(d)
		}
	case "die-after":
		if limit, err := strconv.ParseInt(value, 10, 64); err == nil && n > limit {
			os.Exit(137)
		}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 16<<20))
	if err != nil {
		refuse(w, 400, "reading the request: %v", err)
		return
	}
	var q request
	if err := json.Unmarshal(body, &q); err != nil {
		refuse(w, 400, "the request is no JSON of the protocol: %v", err)
		return
	}
	pre := s.model.pre
	width := int64(len(pre.Mean))
	switch {
	case len(q.Inputs) != 1 || q.Inputs[0].Name != pre.Input:
		refuse(w, 400, "one input %q is expected", pre.Input)
		return
	case q.Inputs[0].Datatype != "FP32":
		refuse(w, 400, "input %q is FP32, not %s", pre.Input, q.Inputs[0].Datatype)
		return
	case len(q.Inputs[0].Shape) != 2 || q.Inputs[0].Shape[1] != width || q.Inputs[0].Shape[0] < 1 || q.Inputs[0].Shape[0] > 1024:
		refuse(w, 400, "input %q has shape [n,%d] with n from 1 to 1024, not %v", pre.Input, width, q.Inputs[0].Shape)
		return
	}
	for _, o := range q.Outputs {
		if o.Name != pre.Output {
			refuse(w, 400, "there is no output %q; the one is %q", o.Name, pre.Output)
			return
		}
	}
	rows := q.Inputs[0].Shape[0]
	features, err := numbers(q.Inputs[0].Data)
	if err != nil || int64(len(features)) != rows*width {
		refuse(w, 400, "input %q: %d numbers for shape %v (%v)", pre.Input, len(features), q.Inputs[0].Shape, err)
		return
	}
	m := s.model
	// The canary answers a fixed share, spread evenly over the requests.
	if s.canary != nil && math.Floor(float64(n)*s.canaryShare) != math.Floor(float64(n-1)*s.canaryShare) {
		m = s.canary
	}
	out, err := m.predict(int(rows), features, !s.raw)
	if err != nil {
		refuse(w, 500, "computing: %v", err)
		return
	}
	classes := len(pre.Labels)
	if s.permute {
		for i := 0; i < len(out); i += classes {
			row := out[i : i+classes]
			first := row[0]
			copy(row, row[1:])
			row[classes-1] = first
		}
	}
	dtype, shape := "FP32", fmt.Sprintf("[%d,%d]", rows, classes)
	data := make([]byte, 0, 16*len(out))
	for i, v := range out {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			refuse(w, 500, "element %d of the output is not finite", i)
			return
		}
		if i > 0 {
			data = append(data, ',')
		}
		data = strconv.AppendFloat(data, float64(v), 'g', -1, 32)
	}
	switch kind {
	case "nan":
		data = append([]byte("NaN"), data[strings.IndexByte(string(data), ','):]...)
	case "shape":
		shape = fmt.Sprintf("[%d]", len(out))
	case "dtype":
		dtype = "FP64"
	}
	outputs := fmt.Sprintf(`{"name":%q,"datatype":%q,"shape":%s,"data":[%s]}`, pre.Output, dtype, shape, data)
	if kind == "drop-output" {
		outputs = ""
	}
	id, _ := json.Marshal(q.ID)
	fmt.Fprintf(w, `{"model_name":%q,"model_version":%q,"id":%s,"outputs":[%s]}`, s.name, s.version, id, outputs)
}

// numbers reads FP32 numbers that are given flat or nested.
func numbers(raw json.RawMessage) ([]float32, error) {
	var v any
	dec := json.NewDecoder(strings.NewReader(string(raw)))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	var out []float32
	var walk func(v any) error
	walk = func(v any) error {
		switch v := v.(type) {
		case []any:
			for _, x := range v {
				if err := walk(x); err != nil {
					return err
				}
			}
			return nil
		case json.Number:
			f, err := strconv.ParseFloat(string(v), 32)
			out = append(out, float32(f))
			return err
		}
		return fmt.Errorf("%v is no number", v)
	}
	return out, walk(v)
}
