package ingest

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// NPZ reads a NumPy archive (numpy.savez): arrays whose first axis counts
// cases, or with Options.Whole the arrays of one case.
//
// The .npy format is read here (numpy.org/doc/stable/reference/generated/
// numpy.lib.format.html): github.com/sbinet/npyio panics on headers that are
// cut short and knows neither half precision nor version 3.
func NPZ(raw []byte, opt Options) (*Result, error) {
	z, err := zip.NewReader(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		return nil, fmt.Errorf("it is no NumPy archive: %w", err)
	}
	r := &Result{}
	arrays := map[string]array{}
	total := int64(0)
	for _, f := range z.File {
		name, ok := strings.CutSuffix(f.Name, ".npy")
		if !ok {
			r.note("%s is left out: it is no .npy", f.Name)
			continue
		}
		a, err := func() (array, error) {
			rc, err := f.Open()
			if err != nil {
				return array{}, err
			}
			defer rc.Close()
			// What the archive says of the size is not believed.
			data, err := io.ReadAll(io.LimitReader(rc, MaxFile-total+1))
			if err != nil {
				return array{}, err
			}
			if total += int64(len(data)); total > MaxFile {
				return array{}, fmt.Errorf("the arrays have more than %d bytes", MaxFile)
			}
			return parseNPY(data)
		}()
		if total > MaxFile {
			return nil, err
		}
		if _, ok := arrays[name]; ok && err == nil {
			err = errors.New("it is there twice")
		}
		if err != nil {
			if slices.Contains(opt.Inputs, name) || slices.Contains(opt.Outputs, name) || name == opt.Label {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			r.note("%s is left out: %v", name, err)
			continue
		}
		arrays[name] = a
	}
	return finish(r, arrays, opt)
}

// finish makes cases of arrays.
func finish(r *Result, arrays map[string]array, opt Options) (*Result, error) {
	if len(arrays) == 0 {
		return nil, fmt.Errorf("it has no array that can be read: %s", firstNotes(r.Notes))
	}
	if err := rows(r, arrays, opt); err != nil {
		return nil, err
	}
	if len(r.Cases) == 0 {
		return nil, fmt.Errorf("it has no case that can be read: %s", firstNotes(r.Notes))
	}
	return r, nil
}

var (
	npyDescr   = regexp.MustCompile(`'descr':\s*'([<>=|])([a-zA-Z])([0-9]+)'`)
	npyFortran = regexp.MustCompile(`'fortran_order':\s*(True|False)`)
	npyShape   = regexp.MustCompile(`'shape':\s*\(([0-9, ]*)\)`)
	npyTypes   = map[string]string{
		"b1": "BOOL", "u1": "UINT8", "u2": "UINT16", "u4": "UINT32", "u8": "UINT64", "i1": "INT8", "i2": "INT16", "i4": "INT32", "i8": "INT64",
		"f2": "FP16", "f4": "FP32", "f8": "FP64",
	}
)

// parseNPY reads a .npy of version 1, 2 or 3.
func parseNPY(raw []byte) (array, error) {
	if len(raw) < 12 || string(raw[:6]) != "\x93NUMPY" {
		return array{}, errors.New("it is no .npy")
	}
	n, from := int64(binary.LittleEndian.Uint16(raw[8:])), int64(10)
	switch raw[6] {
	case 1:
	case 2, 3:
		n, from = int64(binary.LittleEndian.Uint32(raw[8:])), 12
	default:
		return array{}, fmt.Errorf("it is of version %d", raw[6])
	}
	if from+n > int64(len(raw)) {
		return array{}, errors.New("its header is cut short")
	}
	header, data := raw[from:from+n], raw[from+n:]
	descr, fortran, dims := npyDescr.FindSubmatch(header), npyFortran.FindSubmatch(header), npyShape.FindSubmatch(header)
	if descr == nil || fortran == nil || dims == nil {
		return array{}, fmt.Errorf("its header cannot be read, or it has no plain numbers: %.100q", header)
	}
	a := array{datatype: npyTypes[string(descr[2])+string(descr[3])], raw: data}
	if a.datatype == "" {
		return a, fmt.Errorf("type %s%s cannot be read", descr[2], descr[3])
	}
	for _, d := range strings.Split(string(dims[1]), ",") {
		if d = strings.TrimSpace(d); d == "" {
			continue
		}
		v, err := strconv.ParseInt(d, 10, 64)
		if err != nil {
			return a, err
		}
		a.shape = append(a.shape, v)
	}
	if err := a.check(); err != nil {
		return a, err
	}
	width := types[a.datatype].width
	if string(descr[1]) == ">" {
		a.raw = slices.Clone(a.raw)
		for i := 0; i < len(a.raw); i += width {
			slices.Reverse(a.raw[i : i+width])
		}
	}
	if string(fortran[1]) == "True" && len(a.shape) > 1 {
		a.raw = rowMajor(a.raw, a.shape, width)
	}
	return a, nil
}

// rowMajor puts elements that are in the order of Fortran into that of C.
func rowMajor(raw []byte, shape []int64, width int) []byte {
	out := make([]byte, 0, len(raw))
	index := make([]int64, len(shape))
	for len(out) < len(raw) {
		at, stride := int64(0), int64(1)
		for k, i := range index {
			at += i * stride
			stride *= shape[k]
		}
		out = append(out, raw[at*int64(width):(at+1)*int64(width)]...)
		for k := len(index) - 1; k >= 0; k-- {
			if index[k]++; index[k] < shape[k] {
				break
			}
			index[k] = 0
		}
	}
	return out
}

// safetensorTypes are the dtypes of safetensors.
var safetensorTypes = map[string]string{
	"BOOL": "BOOL", "U8": "UINT8", "U16": "UINT16", "U32": "UINT32", "U64": "UINT64", "I8": "INT8", "I16": "INT16", "I32": "INT32", "I64": "INT64",
	"F16": "FP16", "BF16": "BF16", "F32": "FP32", "F64": "FP64",
}

// maxSafetensorsHeader is the limit of the format's own library.
const maxSafetensorsHeader = 100_000_000

// Safetensors reads tensors whose first axis counts cases, or with
// Options.Whole the tensors of one case. Tensors that are called ID/in/NAME
// and ID/out/NAME, as those of a golden suite are, make the cases ID.
func Safetensors(raw []byte, opt Options) (*Result, error) {
	if len(raw) < 8 {
		return nil, fmt.Errorf("%d bytes are no safetensors file", len(raw))
	}
	n := binary.LittleEndian.Uint64(raw)
	if n > maxSafetensorsHeader || n > uint64(len(raw)-8) {
		return nil, fmt.Errorf("its header would have %d bytes, and the file has %d", n, len(raw))
	}
	data := raw[8+n:]
	var header map[string]json.RawMessage
	if err := json.Unmarshal(raw[8:8+n], &header); err != nil {
		return nil, fmt.Errorf("its header: %w", err)
	}
	r := &Result{}
	arrays := map[string]array{}
	for _, name := range sortedKeys(header) {
		if name == "__metadata__" {
			r.note("__metadata__ is left out")
			continue
		}
		var h struct {
			Dtype   string   `json:"dtype"`
			Shape   []int64  `json:"shape"`
			Offsets [2]int64 `json:"data_offsets"`
		}
		err := json.Unmarshal(header[name], &h)
		a := array{datatype: safetensorTypes[h.Dtype], shape: h.Shape}
		switch {
		case err != nil:
		case a.datatype == "":
			err = fmt.Errorf("type %.20q cannot be read", h.Dtype)
		case h.Offsets[0] < 0 || h.Offsets[1] < h.Offsets[0] || h.Offsets[1] > int64(len(data)):
			err = fmt.Errorf("offsets %v lie outside the file", h.Offsets)
		default:
			a.raw = data[h.Offsets[0]:h.Offsets[1]]
			err = a.check()
		}
		if err != nil {
			if slices.Contains(opt.Inputs, name) || slices.Contains(opt.Outputs, name) || name == opt.Label {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			r.note("%s is left out: %v", name, err)
			continue
		}
		arrays[name] = a
	}
	if cases, ok := suiteTensors(r, arrays); ok {
		r.Cases = cases
		if len(cases) == 0 {
			return nil, fmt.Errorf("it has no case that can be read: %s", firstNotes(r.Notes))
		}
		return r, nil
	}
	return finish(r, arrays, opt)
}

// suiteTensors reads tensors that are named as those of a golden suite; ok is
// false if they are not.
func suiteTensors(r *Result, arrays map[string]array) (cases []Case, ok bool) {
	byID := map[string]*Case{}
	broken := map[string]bool{}
	for _, key := range sortedKeys(arrays) {
		parts := strings.SplitN(key, "/", 3)
		if len(parts) != 3 || parts[0] == "" || parts[2] == "" || parts[1] != "in" && parts[1] != "out" {
			return nil, false
		}
		c := byID[parts[0]]
		if c == nil {
			c = &Case{ID: parts[0], Inputs: map[string]Tensor{}, Outputs: map[string]Tensor{}}
			byID[c.ID] = c
		}
		a := arrays[key]
		t, err := fromBits(a.datatype, a.shape, a.raw)
		if err != nil {
			r.note("case %s is left out: %s: %v", c.ID, key, err)
			broken[c.ID] = true
			continue
		}
		if parts[1] == "in" {
			c.Inputs[parts[2]] = t
		} else {
			c.Outputs[parts[2]] = t
		}
	}
	for _, id := range sortedKeys(byID) {
		switch {
		case broken[id]:
		case len(byID[id].Inputs) == 0:
			r.note("case %s is left out: it has no inputs", id)
		default:
			cases = append(cases, *byID[id])
		}
	}
	return cases, len(arrays) > 0
}
