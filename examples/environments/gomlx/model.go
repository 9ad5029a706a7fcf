package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sync"

	"github.com/gomlx/gomlx/backends"
	"github.com/gomlx/gomlx/backends/simplego"
	. "github.com/gomlx/gomlx/pkg/core/graph" // the graph's own vocabulary, as GoMLX's examples write it
	"github.com/gomlx/gomlx/pkg/core/tensors"
	"github.com/gomlx/gomlx/pkg/ml/context"
	"github.com/gomlx/onnx-gomlx/onnx"
)

// A preprocess describes a model beside its graph: the graph takes normalised
// input, and whoever serves it normalises.
type preprocess struct {
	Name   string    `json:"name"`
	Input  string    `json:"input"`
	Output string    `json:"output"`
	Mean   []float32 `json:"mean"`
	Std    []float32 `json:"std"`
	Labels []string  `json:"labels"`
}

// A model is an ONNX graph compiled for GoMLX's pure Go backend.
type model struct {
	pre  preprocess
	mu   sync.Mutex // held while the graph runs
	exec *context.Exec
}

// loadModel reads model.onnx and preprocess.json (there, or in the folder
// above). With int8, every weight is rounded to one of 255 levels.
func loadModel(dir string, backend backends.Backend, int8 bool) (*model, error) {
	m := &model{}
	raw, err := os.ReadFile(filepath.Join(dir, "preprocess.json"))
	if errors.Is(err, fs.ErrNotExist) {
		raw, err = os.ReadFile(filepath.Join(filepath.Dir(filepath.Clean(dir)), "preprocess.json"))
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, &m.pre); err != nil {
		return nil, fmt.Errorf("preprocess.json: %w", err)
	}
	if len(m.pre.Mean) == 0 || len(m.pre.Mean) != len(m.pre.Std) || len(m.pre.Labels) < 2 {
		return nil, errors.New("preprocess.json: mean, std and labels do not fit together")
	}
	parsed, err := onnx.ReadFile(filepath.Join(dir, "model.onnx"))
	if err != nil {
		return nil, err
	}
	ctx := context.New()
	if err := parsed.VariablesToContext(ctx); err != nil {
		return nil, err
	}
	if int8 {
		for v := range ctx.IterVariables() {
			if err := quantize(v); err != nil {
				return nil, fmt.Errorf("rounding %s: %w", v.Name(), err)
			}
		}
	}
	m.exec, err = context.NewExec(backend, ctx, func(ctx *context.Context, x *Node) *Node {
		return parsed.CallGraph(ctx, x.Graph(), map[string]*Node{m.pre.Input: x}, m.pre.Output)[0]
	})
	return m, err
}

// quantize rounds a tensor of weights to int8, symmetrically for the whole
// tensor, and back.
func quantize(v *context.Variable) error {
	value, err := v.Value()
	if err != nil {
		return err
	}
	return tensors.MutableFlatData(value, func(w []float32) {
		largest := 0.0
		for _, x := range w {
			largest = math.Max(largest, math.Abs(float64(x)))
		}
		if largest == 0 {
			return
		}
		scale := largest / 127
		for i, x := range w {
			w[i] = float32(math.Round(float64(x)/scale) * scale)
		}
	})
}

// predict runs the graph on rows of raw features.
func (m *model) predict(rows int, features []float32, normalise bool) ([]float32, error) {
	x := append([]float32(nil), features...)
	if normalise {
		for i := range x {
			j := i % len(m.pre.Mean)
			x[i] = (x[i] - m.pre.Mean[j]) / m.pre.Std[j]
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	out, err := m.exec.Exec(tensors.FromFlatDataAndDimensions(x, rows, len(m.pre.Mean)))
	if err != nil {
		return nil, err
	}
	return tensors.CopyFlatData[float32](out[0])
}

// newBackend opens the pure Go backend.
func newBackend(threads int) (backends.Backend, error) {
	config := ""
	if threads > 0 {
		config = fmt.Sprintf("parallelism=%d", threads)
	}
	return simplego.New(config)
}
