// Package ingest reads cases for golden suites from the formats in which
// people have them: ONNX test data sets, MLflow input examples, lines of
// requests, NumPy archives and safetensors.
//
// A reader returns the cases it could make and a note for everything it could
// not read, left out or changed: nothing is dropped in silence. An error means
// that there is nothing to be had.
package ingest

import (
	"encoding/json"
	"fmt"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
)

// A Case is an input, perhaps with what the right answer to it is.
type Case struct {
	ID      string
	Inputs  map[string]Tensor
	Outputs map[string]Tensor // golden ones, if there are any
	Label   string
}

// A Tensor is numbers with a shape. The datatype is a word of the Open
// Inference Protocol; booleans are 0 and 1.
type Tensor struct {
	Datatype string
	Shape    []int64
	Data     []json.Number
}

// A Result is what a reader found.
type Result struct {
	Cases []Case
	Notes []string // what was left behind, in words
}

func (r *Result) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// Options say what is what where a format does not.
type Options struct {
	// Prefix begins the ids of cases that have none of their own.
	Prefix string

	// Outputs are names that are golden outputs, and Label the name of one
	// that has labels. Inputs are those that are inputs; if there are none,
	// every other is.
	Inputs, Outputs []string
	Label           string

	// Datatype is the type of numbers where a format does not say; "" is FP32.
	Datatype string

	// Join puts the columns of a table into one input of this name, in their
	// order; "" makes an input of each.
	Join string

	// Whole takes arrays as they are for one case; else each row along the
	// first axis is a case.
	Whole bool
}

// Bounds of what is read.
const (
	MaxFile     = 1 << 30 // bytes of a file
	maxElements = 1 << 26 // of one tensor
	maxCases    = 1 << 20
)

// Formats are the readers by name. Each gets the path to a file or folder.
var Formats = map[string]func(path string, opt Options) (*Result, error){
	"onnx":        ONNX,
	"mlflow":      file(MLflow),
	"jsonl":       file(Requests),
	"npz":         file(NPZ),
	"safetensors": file(Safetensors),
}

// types are the element types that can be read: their width in bytes, and
// what a little-endian element of that width is as a number. "" is one that
// JSON cannot write.
var types = map[string]struct {
	width  int
	number func(bits uint64) string
}{
	"BOOL": {1, func(b uint64) string {
		if b > 1 {
			return ""
		}
		return strconv.FormatUint(b, 10)
	}},
	"UINT8":  {1, func(b uint64) string { return strconv.FormatUint(b, 10) }},
	"UINT16": {2, func(b uint64) string { return strconv.FormatUint(b, 10) }},
	"UINT32": {4, func(b uint64) string { return strconv.FormatUint(b, 10) }},
	"UINT64": {8, func(b uint64) string { return strconv.FormatUint(b, 10) }},
	"INT8":   {1, func(b uint64) string { return strconv.FormatInt(int64(int8(b)), 10) }},
	"INT16":  {2, func(b uint64) string { return strconv.FormatInt(int64(int16(b)), 10) }},
	"INT32":  {4, func(b uint64) string { return strconv.FormatInt(int64(int32(b)), 10) }},
	"INT64":  {8, func(b uint64) string { return strconv.FormatInt(int64(b), 10) }},
	"FP16":   {2, func(b uint64) string { return float(half(uint16(b)), 32) }},
	"BF16":   {2, func(b uint64) string { return float(float64(math.Float32frombits(uint32(b)<<16)), 32) }},
	"FP32":   {4, func(b uint64) string { return float(float64(math.Float32frombits(uint32(b))), 32) }},
	"FP64":   {8, func(b uint64) string { return float(math.Float64frombits(b), 64) }},
}

// float writes the shortest number that is read back as the same bits.
func float(v float64, bits int) string {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return ""
	}
	return strconv.FormatFloat(v, 'g', -1, bits)
}

// half is an IEEE 754 binary16 as a number.
func half(b uint16) float64 {
	exponent, fraction := int(b>>10&0x1f), float64(b&0x3ff)
	v := 0.0
	switch exponent {
	case 0:
		v = math.Ldexp(fraction, -24)
	case 0x1f:
		v = math.Inf(1)
		if fraction != 0 {
			v = math.NaN()
		}
	default:
		v = math.Ldexp(1024+fraction, exponent-25)
	}
	if b&0x8000 != 0 {
		v = math.Copysign(v, -1)
	}
	return v
}

// elements is how many a shape has, or an error if it is none or too large.
func elements(shape []int64) (int, error) {
	n := int64(1)
	for _, d := range shape {
		if d < 0 {
			return 0, fmt.Errorf("shape %v is none", shape)
		}
		if d > 0 && n > maxElements/d {
			return 0, fmt.Errorf("shape %v has more than %d elements", shape, maxElements)
		}
		n *= d
	}
	return int(n), nil
}

// fromBits reads a tensor from its little-endian bytes.
func fromBits(datatype string, shape []int64, raw []byte) (Tensor, error) {
	t := Tensor{Datatype: datatype, Shape: shape}
	typ, ok := types[datatype]
	if !ok {
		return t, fmt.Errorf("type %s cannot be read", datatype)
	}
	n, err := elements(shape)
	if err != nil {
		return t, err
	}
	if n*typ.width != len(raw) {
		return t, fmt.Errorf("it has %d bytes for shape %v of %s", len(raw), shape, datatype)
	}
	t.Data = make([]json.Number, n)
	for i := range t.Data {
		var bits uint64
		for k := typ.width - 1; k >= 0; k-- {
			bits = bits<<8 | uint64(raw[i*typ.width+k])
		}
		number := typ.number(bits)
		if number == "" {
			return t, fmt.Errorf("element %d is not finite, or no value of %s: JSON has no word for it", i, datatype)
		}
		t.Data[i] = json.Number(number)
	}
	return t, nil
}

// rows cuts arrays along their first axis. What cannot be cut, or does not
// have as many rows as the others, is noted and left out; so is a row of which
// an element cannot be written.
func rows(r *Result, arrays map[string]array, opt Options) error {
	n := -1
	names := sortedKeys(arrays)
	role := func(name string) string {
		switch {
		case name == opt.Label && name != "":
			return "label"
		case slices.Contains(opt.Outputs, name):
			return "output"
		case len(opt.Inputs) == 0 || slices.Contains(opt.Inputs, name):
			return "input"
		}
		return ""
	}
	for _, name := range slices.Concat(opt.Inputs, opt.Outputs, nonEmpty(opt.Label)) {
		if _, ok := arrays[name]; !ok {
			return fmt.Errorf("there is no %s; there are %s", name, strings.Join(names, ", "))
		}
	}
	inputs := 0
	for _, name := range names {
		a := arrays[name]
		switch role(name) {
		case "":
			r.note("%s is left out: it was not named as an input", name)
			delete(arrays, name)
			continue
		case "input":
			inputs++
		}
		if opt.Whole {
			n = 1
			continue
		}
		if len(a.shape) == 0 {
			return fmt.Errorf("%s has no axis, so it has no rows: take arrays whole", name)
		}
		if n >= 0 && int64(n) != a.shape[0] {
			return fmt.Errorf("%s has %d rows and others have %d: name the inputs and outputs, or take arrays whole", name, a.shape[0], n)
		}
		n = int(a.shape[0])
	}
	if inputs == 0 {
		return fmt.Errorf("none of %s is an input", strings.Join(names, ", "))
	}
	if n > maxCases {
		return fmt.Errorf("there are %d rows, and at most %d are read", n, maxCases)
	}
	for i := range n {
		c := Case{ID: fmt.Sprintf("%s%06d", opt.Prefix, i), Inputs: map[string]Tensor{}, Outputs: map[string]Tensor{}}
		var err error
		for _, name := range sortedKeys(arrays) {
			a := arrays[name]
			shape, raw := a.shape, a.raw
			if !opt.Whole {
				width := len(a.raw) / max(n, 1)
				shape, raw = append([]int64{1}, a.shape[1:]...), a.raw[i*width:(i+1)*width]
			}
			var t Tensor
			if t, err = fromBits(a.datatype, shape, raw); err != nil {
				err = fmt.Errorf("%s: %w", name, err)
				break
			}
			switch role(name) {
			case "label":
				if len(t.Data) != 1 {
					return fmt.Errorf("%s has %d elements a row, and a label is one", name, len(t.Data))
				}
				c.Label = string(t.Data[0])
			case "output":
				c.Outputs[name] = t
			default:
				c.Inputs[name] = t
			}
		}
		if err != nil {
			r.note("row %d is left out: %v", i, err)
			continue
		}
		r.Cases = append(r.Cases, c)
	}
	return nil
}

func nonEmpty(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

// An array is a tensor that was not read yet: its bytes, little-endian, in the
// order of C.
type array struct {
	datatype string
	shape    []int64
	raw      []byte
}

func (a array) check() error {
	typ, ok := types[a.datatype]
	if !ok {
		return fmt.Errorf("type %s cannot be read", a.datatype)
	}
	n, err := elements(a.shape)
	if err == nil && n*typ.width != len(a.raw) {
		err = fmt.Errorf("it has %d bytes for shape %v of %s", len(a.raw), a.shape, a.datatype)
	}
	return err
}

func sortedKeys[V any](m map[string]V) []string {
	list := make([]string, 0, len(m))
	for k := range m {
		list = append(list, k)
	}
	slices.Sort(list)
	return list
}

// caseID makes an id of a name: ids have no slash and no line end.
func caseID(prefix, name string) string {
	return prefix + strings.NewReplacer("/", "_", "\n", "_", "\r", "_").Replace(path.Clean(name))
}
