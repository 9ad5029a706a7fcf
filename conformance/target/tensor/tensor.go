// Package tensor checks the bits of tensors and turns them into JSON and back,
// for the protocols that do.
package tensor

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"unicode/utf8"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/conformance/target"
)

// Widths are the sizes of elements in bytes, by datatype in the words of the
// Open Inference Protocol; 0 stands for elements with a length in front. BF16
// is Triton's.
var Widths = map[string]int{
	"BOOL": 1, "UINT8": 1, "INT8": 1, "UINT16": 2, "INT16": 2, "FP16": 2, "BF16": 2,
	"UINT32": 4, "INT32": 4, "FP32": 4, "UINT64": 8, "INT64": 8, "FP64": 8, "BYTES": 0,
}

// Check says why the bits of a tensor are not those of its shape and
// datatype, or nil.
func Check(t compare.Tensor) error {
	w, ok := Widths[t.Datatype]
	if !ok {
		return fmt.Errorf("datatype %q is not known", t.Datatype)
	}
	n := compare.Elements(t.Shape)
	if n < 0 {
		return fmt.Errorf("%v is no shape", t.Shape)
	}
	switch {
	case t.Datatype == "BYTES":
		got, err := Split(t.Bits)
		if err != nil {
			return err
		}
		if len(got) != n {
			return fmt.Errorf("%d elements for shape %v", len(got), t.Shape)
		}
	case len(t.Bits) != n*w:
		return fmt.Errorf("%d bytes for shape %v of %s", len(t.Bits), t.Shape, t.Datatype)
	case t.Datatype == "BOOL":
		for i, b := range t.Bits {
			if b > 1 {
				return fmt.Errorf("element %d is %d, which is neither true nor false", i, b)
			}
		}
	}
	return nil
}

// Split takes the elements of BYTES apart: "an element is represented by a
// 4-byte unsigned integer giving the length followed by the actual bytes".
func Split(bits []byte) (list [][]byte, err error) {
	for len(bits) > 0 {
		if len(bits) < 4 {
			return nil, fmt.Errorf("%d bytes are left over after %d elements", len(bits), len(list))
		}
		n := uint64(bits[0]) | uint64(bits[1])<<8 | uint64(bits[2])<<16 | uint64(bits[3])<<24
		if n > uint64(len(bits)-4) {
			return nil, fmt.Errorf("element %d has a length of %d and %d bytes are left", len(list), n, len(bits)-4)
		}
		list = append(list, bits[4:4+n])
		bits = bits[4+n:]
	}
	return list, nil
}

// WriteJSON writes the elements, with commas between them. Numbers are the
// shortest decimals that read back as the same bits. What JSON cannot say is
// an error: NaN, FP16 and BF16, whose decimals would be up to the reader.
func WriteJSON(b *bytes.Buffer, t compare.Tensor) error {
	if t.Datatype == "BYTES" {
		list, err := Split(t.Bits)
		if err != nil {
			return err
		}
		for i, e := range list {
			if !utf8.Valid(e) {
				return fmt.Errorf("element %d is no UTF-8, which JSON cannot say; use a protocol with tensors as bytes", i)
			}
			if i > 0 {
				b.WriteByte(',')
			}
			text, err := json.Marshal(string(e))
			if err != nil {
				return err
			}
			b.Write(text)
		}
		return nil
	}
	w := Widths[t.Datatype]
	var scratch [32]byte
	for i := 0; i*w < len(t.Bits); i++ {
		if i > 0 {
			b.WriteByte(',')
		}
		e, s := t.Bits[i*w:(i+1)*w], scratch[:0]
		float := func(v float64, bits int) error {
			if math.IsNaN(v) || math.IsInf(v, 0) {
				return fmt.Errorf("element %d is %v, which JSON cannot say; use a protocol with tensors as bytes", i, v)
			}
			s = strconv.AppendFloat(s, v, 'g', -1, bits)
			return nil
		}
		var err error
		switch t.Datatype {
		case "BOOL":
			s = strconv.AppendBool(s, e[0] == 1)
		case "UINT8", "UINT16", "UINT32", "UINT64":
			s = strconv.AppendUint(s, Unsigned(e), 10)
		case "INT8", "INT16", "INT32", "INT64":
			shift := 64 - 8*len(e) // extends the sign
			s = strconv.AppendInt(s, int64(Unsigned(e)<<shift)>>shift, 10)
		case "FP32":
			err = float(float64(math.Float32frombits(binary.LittleEndian.Uint32(e))), 32)
		case "FP64":
			err = float(math.Float64frombits(binary.LittleEndian.Uint64(e)), 64)
		default:
			err = fmt.Errorf("%s cannot be said in JSON; use a protocol with tensors as bytes", t.Datatype)
		}
		if err != nil {
			return err
		}
		b.Write(s)
	}
	return nil
}

// WriteNestedJSON writes the elements as lists of lists, one level for each
// dimension.
func WriteNestedJSON(b *bytes.Buffer, t compare.Tensor) error {
	if len(t.Shape) == 0 {
		return WriteJSON(b, t)
	}
	b.WriteByte('[')
	defer b.WriteByte(']')
	if len(t.Shape) == 1 {
		return WriteJSON(b, t)
	}
	if t.Datatype == "BYTES" {
		return fmt.Errorf("texts in %d dimensions cannot be nested; give them flat", len(t.Shape))
	}
	rows := int(t.Shape[0])
	for i := range rows {
		if i > 0 {
			b.WriteByte(',')
		}
		row := t
		row.Shape = t.Shape[1:]
		size := len(t.Bits) / rows
		row.Bits = t.Bits[i*size : (i+1)*size]
		if err := WriteNestedJSON(b, row); err != nil {
			return err
		}
	}
	return nil
}

// Unsigned reads a little-endian integer of any width.
func Unsigned(e []byte) (v uint64) {
	for i, b := range e {
		v |= uint64(b) << (8 * i)
	}
	return v
}

// AppendUnsigned writes one of width bytes.
func AppendUnsigned(out []byte, v uint64, width int) []byte {
	for i := range width {
		out = append(out, byte(v>>(8*i)))
	}
	return out
}

// element appends the bits of one element.
func element(bits []byte, datatype string, tok json.Token) ([]byte, error) {
	if tok == nil {
		return bits, target.Wrongf("not-finite", "data has null in the place of an element")
	}
	width := Widths[datatype]
	switch v := tok.(type) {
	case json.Number:
		s := string(v)
		switch datatype {
		case "FP32":
			f, err := strconv.ParseFloat(s, 32)
			if err != nil {
				return bits, target.Wrongf("not-finite", "%s is no FP32", s)
			}
			return binary.LittleEndian.AppendUint32(bits, math.Float32bits(float32(f))), nil
		case "FP64":
			f, err := strconv.ParseFloat(s, 64)
			if err != nil {
				return bits, target.Wrongf("not-finite", "%s is no FP64", s)
			}
			return binary.LittleEndian.AppendUint64(bits, math.Float64bits(f)), nil
		case "UINT8", "UINT16", "UINT32", "UINT64":
			u, err := strconv.ParseUint(s, 10, 8*width)
			if err != nil {
				return bits, target.Wrongf("malformed", "%s is no %s", s, datatype)
			}
			return AppendUnsigned(bits, u, width), nil
		case "INT8", "INT16", "INT32", "INT64":
			i, err := strconv.ParseInt(s, 10, 8*width)
			if err != nil {
				return bits, target.Wrongf("malformed", "%s is no %s", s, datatype)
			}
			return AppendUnsigned(bits, uint64(i), width), nil
		case "FP16", "BF16":
			return bits, target.Wrongf("malformed", "%s came as decimals, which do not say its bits; use a protocol with tensors as bytes", datatype)
		}
	case bool:
		if datatype == "BOOL" {
			b := byte(0)
			if v {
				b = 1
			}
			return append(bits, b), nil
		}
	case string:
		if datatype == "BYTES" {
			bits = binary.LittleEndian.AppendUint32(bits, uint32(len(v)))
			return append(bits, v...), nil
		}
		if datatype == "FP32" || datatype == "FP64" {
			return bits, target.Wrongf("not-finite", "data has %q in the place of a number", v)
		}
	}
	return bits, target.Wrongf("malformed", "data has %v in the place of a %s", tok, datatype)
}

// ReadJSON reads elements that are given flat or nested: "the data … can be
// presented in a nested or flattened form, row-major" (Open Inference
// Protocol, Tensor Data). It returns their bits, how many there are, and the
// shape of the nesting. A number in no list at all has a shape of no
// dimensions. What is no number of the datatype is a [target.Wrong].
func ReadJSON(datatype string, raw json.RawMessage) (bits []byte, n int, shape []int64, err error) {
	if _, ok := Widths[datatype]; !ok {
		return nil, 0, nil, target.Wrongf("malformed", "datatype %q is not known", datatype)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	// counts[d] is how many there are so far in the open list of depth d, and
	// shape[d] how many there were in the first one that was closed.
	var counts []int64
	shape = []int64{}
	deepest := -1 // the depth at which elements stand
	for {
		tok, err := dec.Token()
		if err == io.EOF {
			return bits, n, shape, nil
		}
		if err != nil {
			return nil, 0, nil, target.Wrongf("malformed", "%v", err)
		}
		if tok == json.Delim(']') {
			d := len(counts) - 1
			switch {
			case len(shape) <= d:
				for len(shape) <= d {
					shape = append(shape, -1)
				}
				shape[d] = counts[d]
			case shape[d] == -1:
				shape[d] = counts[d]
			case shape[d] != counts[d]:
				return nil, 0, nil, target.Wrongf("malformed", "the lists have %d and %d elements: they are no tensor", shape[d], counts[d])
			}
			counts = counts[:d]
			continue
		}
		if len(counts) > 0 {
			counts[len(counts)-1]++
		}
		if tok == json.Delim('[') {
			if deepest == len(counts) && len(counts) > 0 || len(counts) >= 16 {
				return nil, 0, nil, target.Wrongf("malformed", "elements and lists stand side by side")
			}
			counts = append(counts, 0)
			continue
		}
		if _, ok := tok.(json.Delim); ok {
			return nil, 0, nil, target.Wrongf("malformed", "an object stands in the place of an element")
		}
		if deepest >= 0 && deepest != len(counts) {
			return nil, 0, nil, target.Wrongf("malformed", "elements and lists stand side by side")
		}
		deepest = len(counts)
		n++
		if bits, err = element(bits, datatype, tok); err != nil {
			return nil, 0, nil, err
		}
	}
}
