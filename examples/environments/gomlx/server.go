package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
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
	shift         float64 // of the second of two probabilities
	fail          string  // one of failures; slow:DURATION, die-after:N
	failEvery     int
	parameters    map[string]string
}

type server struct {
	options
	requests   atomic.Int64
	inferences atomic.Int64 // rows that were computed
	executions atomic.Int64
}

// extensions are those of Triton that this server has.
var extensions = []string{"binary_tensor_data", "model_configuration", "statistics"}

type tensor struct {
	Name       string          `json:"name"`
	Shape      []int64         `json:"shape"`
	Datatype   string          `json:"datatype"`
	Data       json.RawMessage `json:"data"`
	Parameters struct {
		BinaryDataSize *int `json:"binary_data_size"`
	} `json:"parameters"`
}

type request struct {
	ID         string   `json:"id"`
	Inputs     []tensor `json:"inputs"`
	Parameters struct {
		BinaryDataOutput bool `json:"binary_data_output"`
	} `json:"parameters"`
	Outputs []struct {
		Name       string `json:"name"`
		Parameters struct {
			BinaryData *bool `json:"binary_data"`
		} `json:"parameters"`
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
		answer(w, 200, map[string]any{"name": "gomlx-oip", "version": "1", "extensions": extensions})
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
	case r.Method == "GET" && path == model+"/config":
		answer(w, 200, map[string]any{
			"name": s.name, "backend": "onnx_gomlx", "max_batch_size": maxBatch, "response_cache": map[string]bool{"enable": false},
			"instance_group": []any{map[string]any{"name": s.name + "_0", "kind": "KIND_CPU", "count": 1, "gpus": []int{}}},
		})
	case r.Method == "GET" && path == model+"/stats":
		n := s.requests.Load()
		answer(w, 200, map[string]any{"model_stats": []any{map[string]any{
			"name": s.name, "version": s.version, "inference_count": s.inferences.Load(), "execution_count": s.executions.Load(),
			"inference_stats": map[string]any{"success": map[string]any{"count": n, "ns": 0}, "cache_hit": map[string]any{"count": 0, "ns": 0}},
		}}})
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

// maxBatch is how many rows one question may have.
const maxBatch = 1024

// fault returns how the n-th request is to be answered badly, and with which
// value.
func (s *server) fault(n int64) (kind, value string) {
	kind, value, _ = strings.Cut(s.fail, ":")
	if n%int64(max(s.failEvery, 1)) != 0 && kind != "die-after" {
		return "", ""
	}
	switch kind {
	case "slow":
		if d, err := time.ParseDuration(value); err == nil {
			time.Sleep(d)
		}
	case "die-after":
		if limit, err := strconv.ParseInt(value, 10, 64); err == nil && n > limit {
			os.Exit(137)
		}
	}
	return kind, value
}

// A question is one, whatever it was asked over.
type question struct {
	input, datatype string
	shape           []int64
	features        []float32
	outputs         []string
}

// errComputing is what is not the client's fault.
var errComputing = errors.New("computing")

// predict answers the n-th request: a row of the model's output for each row
// of its input.
func (s *server) predict(n int64, q question) (rows int64, out []float32, err error) {
	pre := s.model.pre
	width := int64(len(pre.Mean))
	switch {
	case q.input != pre.Input:
		return 0, nil, fmt.Errorf("one input %q is expected", pre.Input)
	case q.datatype != "FP32":
		return 0, nil, fmt.Errorf("input %q is FP32, not %s", pre.Input, q.datatype)
	case len(q.shape) != 2 || q.shape[1] != width || q.shape[0] < 1 || q.shape[0] > maxBatch:
		return 0, nil, fmt.Errorf("input %q has shape [n,%d] with n from 1 to %d, not %v", pre.Input, width, maxBatch, q.shape)
	case int64(len(q.features)) != q.shape[0]*width:
		return 0, nil, fmt.Errorf("input %q: %d numbers for shape %v", pre.Input, len(q.features), q.shape)
	}
	for _, o := range q.outputs {
		if o != pre.Output {
			return 0, nil, fmt.Errorf("there is no output %q; the one is %q", o, pre.Output)
		}
	}
	m := s.model
	// The canary answers a fixed share, spread evenly over the requests.
	if s.canary != nil && math.Floor(float64(n)*s.canaryShare) != math.Floor(float64(n-1)*s.canaryShare) {
		m = s.canary
	}
	rows = q.shape[0]
	if out, err = m.predict(int(rows), q.features, !s.raw); err != nil {
		return 0, nil, fmt.Errorf("%w: %v", errComputing, err)
	}
	s.inferences.Add(rows)
	s.executions.Add(1)
	classes := len(pre.Labels)
	for i := 0; i < len(out); i += classes {
		row := out[i : i+classes]
		if s.permute {
			first := row[0]
			copy(row, row[1:])
			row[classes-1] = first
		}
		if s.shift != 0 {
			shift(row, s.shift)
		}
	}
	for i, v := range out {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return 0, nil, fmt.Errorf("%w: element %d of the output is not finite", errComputing, i)
		}
	}
	return rows, out, nil
}

// shift moves a row of two probabilities as a threshold that lies elsewhere
// does: what was by away from it is at it now.
func shift(row []float32, by float64) {
	if len(row) != 2 {
		return
	}
	p := min(1, max(0, float64(row[1])+by))
	row[0], row[1] = float32(1-p), float32(p)
}

func (s *server) infer(w http.ResponseWriter, r *http.Request) {
	n := s.requests.Add(1)
	kind, _ := s.fault(n)
	switch kind {
	case "http500":
		refuse(w, 500, "out of memory")
		return
	case "error-in-200":
		answer(w, 200, map[string]string{"error": "out of memory"})
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 16<<20))
	if err != nil {
		refuse(w, 400, "reading the request: %v", err)
		return
	}
	// "The Inference-Header-Content-Length header must be provided to give the
	// length of the JSON object" (binary tensor data extension).
	head, rest := body, []byte(nil)
	if v := r.Header.Get("Inference-Header-Content-Length"); v != "" {
		length, err := strconv.Atoi(v)
		if err != nil || length < 0 || length > len(body) {
			refuse(w, 400, "Inference-Header-Content-Length is %q for a body of %d bytes", v, len(body))
			return
		}
		head, rest = body[:length], body[length:]
	}
	var q request
	if err := json.Unmarshal(head, &q); err != nil {
		refuse(w, 400, "the request is no JSON of the protocol: %v", err)
		return
	}
	if len(q.Inputs) != 1 {
		refuse(w, 400, "one input %q is expected", s.model.pre.Input)
		return
	}
	in := q.Inputs[0]
	asked := question{input: in.Name, datatype: in.Datatype, shape: in.Shape}
	if size := in.Parameters.BinaryDataSize; size != nil {
		if *size != len(rest) || *size%4 != 0 || in.Data != nil {
			refuse(w, 400, "input %q: binary_data_size is %d, %d bytes came", in.Name, *size, len(rest))
			return
		}
		asked.features = floats(rest)
	} else if asked.features, err = numbers(in.Data); err != nil {
		refuse(w, 400, "input %q: %v", in.Name, err)
		return
	}
	asBytes := q.Parameters.BinaryDataOutput
	for _, o := range q.Outputs {
		asked.outputs = append(asked.outputs, o.Name)
		if o.Parameters.BinaryData != nil {
			asBytes = *o.Parameters.BinaryData
		}
	}
	rows, out, err := s.predict(n, asked)
	if err != nil {
		status := 400
		if errors.Is(err, errComputing) {
			status = 500
		}
		refuse(w, status, "%v", err)
		return
	}
	dtype, shape := "FP32", fmt.Sprintf("[%d,%d]", rows, len(s.model.pre.Labels))
	switch kind {
	case "nan":
		out[0] = float32(math.NaN())
	case "shape":
		shape = fmt.Sprintf("[%d]", len(out))
	case "dtype":
		dtype = "FP64"
	}
	output := fmt.Sprintf(`"name":%q,"datatype":%q,"shape":%s`, s.model.pre.Output, dtype, shape)
	var bits []byte
	if asBytes {
		bits = bytesOf(out)
		output += fmt.Sprintf(`,"parameters":{"binary_data_size":%d}`, len(bits))
	} else {
		data := make([]byte, 0, 16*len(out))
		for i, v := range out {
			if i > 0 {
				data = append(data, ',')
			}
			data = strconv.AppendFloat(data, float64(v), 'g', -1, 32)
		}
		output += fmt.Sprintf(`,"data":[%s]`, data)
	}
	outputs := "{" + output + "}"
	if kind == "drop-output" {
		outputs, bits = "", nil
	}
	id, _ := json.Marshal(q.ID)
	text := fmt.Sprintf(`{"model_name":%q,"model_version":%q,"id":%s,"outputs":[%s]}`, s.name, s.version, id, outputs)
	if bits != nil {
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Inference-Header-Content-Length", strconv.Itoa(len(text)))
	}
	io.WriteString(w, text)
	w.Write(bits)
}

// floats and bytesOf turn tensors into bytes and back: "little-endian byte
// order, row major, without stride or padding".
func floats(b []byte) []float32 {
	out := make([]float32, len(b)/4)
	for i := range out {
		out[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return out
}

func bytesOf(v []float32) []byte {
	out := make([]byte, 0, 4*len(v))
	for _, x := range v {
		out = binary.LittleEndian.AppendUint32(out, math.Float32bits(x))
	}
	return out
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
