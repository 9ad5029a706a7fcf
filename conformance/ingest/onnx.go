package ingest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// ONNX reads test data as the ONNX model zoo and backend tests have it:
// folders test_data_set_N with input_0.pb, input_1.pb … and output_0.pb …,
// each a TensorProto. The path is such a folder, or one that holds several. A
// tensor that has no name gets that of its file.
func ONNX(dir string, opt Options) (*Result, error) {
	sets := []string{dir}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var inside []string
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), "test_data_set_") {
			inside = append(inside, filepath.Join(dir, e.Name()))
		}
	}
	if len(inside) > 0 {
		sets = inside
		slices.SortFunc(sets, func(a, b string) int { return trailing(a) - trailing(b) })
	}
	r := &Result{}
	for _, set := range sets {
		c := Case{ID: caseID(opt.Prefix, filepath.Base(set)), Inputs: map[string]Tensor{}, Outputs: map[string]Tensor{}}
		entries, err := os.ReadDir(set)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			part := onnxFile.FindStringSubmatch(e.Name())
			if part == nil {
				r.note("%s: %s is left out: it is no input_N.pb and no output_N.pb", c.ID, e.Name())
				continue
			}
			raw, err := readFile(filepath.Join(set, e.Name()))
			var name string
			var t Tensor
			if err == nil {
				name, t, err = ParseTensorProto(raw)
			}
			if name == "" {
				name = part[1] + "_" + part[2]
			}
			to := c.Inputs
			if part[1] == "output" {
				to = c.Outputs
			}
			if _, ok := to[name]; ok && err == nil {
				err = fmt.Errorf("tensor %s is there twice", name)
			}
			if err != nil {
				if part[1] == "output" {
					r.note("%s: %s is left out: %v", c.ID, e.Name(), err)
					continue
				}
				// Without one of its inputs it is another question.
				r.note("%s is left out: %s: %v", c.ID, e.Name(), err)
				c.Inputs = nil
				break
			}
			to[name] = t
		}
		if c.Inputs != nil && len(c.Inputs) == 0 {
			r.note("%s is left out: it has no input_N.pb", c.ID)
		}
		if len(c.Inputs) > 0 {
			r.Cases = append(r.Cases, c)
		}
	}
	if len(r.Cases) == 0 {
		return nil, fmt.Errorf("%s has no test data that can be read: %s", dir, strings.Join(r.Notes, "; "))
	}
	return r, nil
}

var onnxFile = regexp.MustCompile(`^(input|output)_([0-9]+)\.pb$`)

func trailing(name string) int {
	n, _ := strconv.Atoi(name[strings.LastIndex(name, "_")+1:])
	return n
}

// onnxTypes are the values of TensorProto.DataType (onnx.proto).
var onnxTypes = map[uint64]string{
	1: "FP32", 2: "UINT8", 3: "INT8", 4: "UINT16", 5: "INT16", 6: "INT32", 7: "INT64", 9: "BOOL",
	10: "FP16", 11: "FP64", 12: "UINT32", 13: "UINT64", 16: "BF16",
}

// ParseTensorProto reads an onnx.TensorProto, field by field: the numbers
// follow from onnx.proto, and the library that would know them all carries a
// runtime.
func ParseTensorProto(raw []byte) (name string, t Tensor, err error) {
	var shape []int64
	var dataType uint64
	var bits, rawData []byte // bits: elements of typed fields, little-endian, eight bytes each
	var isRaw, external bool
	var floats, doubles []byte
	varints := func(b []byte, typ protowire.Type, each func(uint64)) ([]byte, error) {
		if typ == protowire.VarintType {
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return nil, protowire.ParseError(n)
			}
			each(v)
			return b[n:], nil
		}
		packed, n := protowire.ConsumeBytes(b)
		if typ != protowire.BytesType || n < 0 {
			return nil, errors.New("a field of numbers is malformed")
		}
		for len(packed) > 0 {
			v, n := protowire.ConsumeVarint(packed)
			if n < 0 {
				return nil, protowire.ParseError(n)
			}
			each(v)
			packed = packed[n:]
		}
		return b[n:], nil
	}
	fixed := func(b []byte, typ, single protowire.Type, width int, to *[]byte) ([]byte, error) {
		if typ == single {
			if len(b) < width {
				return nil, errors.New("it is truncated")
			}
			*to = append(*to, b[:width]...)
			return b[width:], nil
		}
		packed, n := protowire.ConsumeBytes(b)
		if typ != protowire.BytesType || n < 0 {
			return nil, errors.New("a field of numbers is malformed")
		}
		*to = append(*to, packed...)
		return b[n:], nil
	}
	for b := raw; len(b) > 0; {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return name, t, fmt.Errorf("it is no TensorProto: %w", protowire.ParseError(n))
		}
		b = b[n:]
		switch num {
		case 1: // dims
			b, err = varints(b, typ, func(v uint64) { shape = append(shape, int64(v)) })
		case 2: // data_type
			b, err = varints(b, typ, func(v uint64) { dataType = v })
		case 4: // float_data
			b, err = fixed(b, typ, protowire.Fixed32Type, 4, &floats)
		case 10: // double_data
			b, err = fixed(b, typ, protowire.Fixed64Type, 8, &doubles)
		case 5, 7, 11: // int32_data, int64_data, uint64_data
			b, err = varints(b, typ, func(v uint64) { bits = binary.LittleEndian.AppendUint64(bits, v) })
		case 8, 9: // name, raw_data
			v, n := protowire.ConsumeBytes(b)
			if typ != protowire.BytesType || n < 0 {
				err = errors.New("its name or its data is malformed")
				break
			}
			if num == 8 {
				name = strings.ToValidUTF8(string(v), "\uFFFD")
			} else {
				rawData, isRaw = v, true
			}
			b = b[n:]
		case 14: // data_location
			b, err = varints(b, typ, func(v uint64) { external = v == 1 })
		case 3: // segment
			err = errors.New("it is a segment of a tensor")
		default: // string_data, doc_string, external_data, metadata
			n := protowire.ConsumeFieldValue(num, typ, b)
			if n < 0 {
				err = protowire.ParseError(n)
				break
			}
			b = b[n:]
		}
		if err != nil {
			return name, t, fmt.Errorf("it is no TensorProto that can be read: %w", err)
		}
	}
	datatype, ok := onnxTypes[dataType]
	switch {
	case external:
		return name, t, errors.New("its data is in another file")
	case dataType == 8:
		return name, t, errors.New("it is text")
	case !ok:
		return name, t, fmt.Errorf("data type %d cannot be read", dataType)
	case isRaw:
		t, err = fromBits(datatype, shape, rawData)
		return name, t, err
	}
	// Typed fields: float and double have their own; the rest is in integers,
	// of which the low bytes are the element ("int32_data: for int32, uint8,
	// int8, uint16, int16, bool, float16 and bfloat16").
	var data []byte
	switch datatype {
	case "FP32":
		data = floats
	case "FP64":
		data = doubles
	default:
		width := types[datatype].width
		for i := 0; i+8 <= len(bits); i += 8 {
			data = append(data, bits[i:i+width]...)
			if v := int64(binary.LittleEndian.Uint64(bits[i:])); width < 8 && (v > math.MaxUint32 || v < math.MinInt32) {
				return name, t, fmt.Errorf("element %d is out of range", i/8)
			}
		}
	}
	t, err = fromBits(datatype, shape, data)
	return name, t, err
}
