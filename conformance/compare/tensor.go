package compare

import (
	"encoding/binary"
	"fmt"
	"math"
)

// A Tensor is numbers with a shape. Bits are the elements as they were sent,
// in the declared type, little-endian, without padding.
type Tensor struct {
	Name     string
	Datatype string // in the words of the Open Inference Protocol, and "BF16"
	Shape    []int64
	Bits     []byte
}

// A kind is an element type that can be compared.
type kind struct {
	width  int // in bytes
	decode func(dst []float64, src []byte)

	// steps returns the largest distance in units in the last place, and how
	// many elements are not the same bits. It is nil where both follow from the
	// differences, as for integers that a float64 holds.
	steps func(want, got []byte) (most uint64, differing int)

	// exact subtracts where a float64 does not hold every value; else nil.
	exact func(d []float64, want, got []byte)
}

// kinds are the element types by their names. Those of 64-bit integers have
// their own subtraction, because a float64 does not hold them all.
var kinds = map[string]kind{
	"BOOL":   {width: 1, decode: decodeUint8},
	"UINT8":  {width: 1, decode: decodeUint8},
	"INT8":   {width: 1, decode: decodeInt8},
	"UINT16": {width: 2, decode: decodeUint16},
	"INT16":  {width: 2, decode: decodeInt16},
	"UINT32": {width: 4, decode: decodeUint32},
	"INT32":  {width: 4, decode: decodeInt32},
	"UINT64": {width: 8, decode: decodeUint64, steps: stepsUint64, exact: exactUint64},
	"INT64":  {width: 8, decode: decodeInt64, steps: stepsInt64, exact: exactInt64},
	"FP16":   {width: 2, decode: decodeFP16, steps: stepsFloat16},
	"BF16":   {width: 2, decode: decodeBF16, steps: stepsFloat16},
	"FP32":   {width: 4, decode: decodeFP32},
	"FP64":   {width: 8, decode: decodeFP64, steps: stepsFP64},
}

// Width returns the size of an element in bytes, or 0 for a type that cannot be
// compared.
func Width(datatype string) int { return kinds[datatype].width }

// binaryFormat is a format of IEEE 754-2019, section 3.4: a sign, an exponent
// with a bias, and a fraction.
type binaryFormat struct{ width, fraction, bias int } // in bytes; in bits

var binaryFormats = map[string]binaryFormat{
	"FP16": {2, 10, 15},
	"BF16": {2, 7, 127},
	"FP32": {4, 23, 127},
	"FP64": {8, 52, 1023},
}

// AppendFloat appends the element of a float type that is nearest to v, ties to
// the even one (IEEE 754-2019, 4.3.1). It is an error if v is not finite, or is
// so large that it would become infinite.
func AppendFloat(bits []byte, datatype string, v float64) ([]byte, error) {
	f, ok := binaryFormats[datatype]
	if !ok {
		return bits, fmt.Errorf("datatype %q is no float", datatype)
	}
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return bits, fmt.Errorf("%v is not finite", v)
	}
	_, e := math.Frexp(v)
	least := 1 - f.bias // the exponent of the smallest normal number, and of all below it
	exponent := max(e-1, least)
	// In units in the last place; a whole number of them up to 2^(fraction+1).
	q := uint64(math.RoundToEven(math.Ldexp(math.Abs(v), f.fraction-exponent)))
	// One more unit after the largest fraction is the next exponent: so the sum
	// carries by itself, and a subnormal number has the exponent 0.
	x := q
	if q>>f.fraction != 0 {
		x = uint64(exponent-least)<<f.fraction + q
	}
	if x >= uint64(2*f.bias+1)<<f.fraction {
		return bits, fmt.Errorf("%v is too large for %s", v, datatype)
	}
	if math.Signbit(v) {
		x |= 1 << (8*f.width - 1)
	}
	for range f.width {
		bits = append(bits, byte(x))
		x >>= 8
	}
	return bits, nil
}

// Elements returns the number of elements the shape has, or -1 if the shape
// is not one.
func Elements(shape []int64) int {
	n := int64(1)
	for _, d := range shape {
		if d < 0 || d > 1<<31 || n > 1<<31 {
			return -1
		}
		n *= d
	}
	return int(n)
}

// check returns the kind of the tensor, and its number of elements.
func (t Tensor) check() (k kind, n int, fault Fault, err error) {
	k, ok := kinds[t.Datatype]
	if !ok {
		return k, 0, FaultDatatype, fmt.Errorf("tensor %s: datatype %q cannot be compared", t.Name, t.Datatype)
	}
	n = Elements(t.Shape)
	if n < 0 || n*k.width != len(t.Bits) {
		return k, 0, FaultShape, fmt.Errorf("tensor %s: %d bytes for shape %v of %s", t.Name, len(t.Bits), t.Shape, t.Datatype)
	}
	if t.Datatype == "BOOL" {
		for i, b := range t.Bits {
			if b > 1 {
				return k, 0, FaultValue, fmt.Errorf("tensor %s: element %d is %d, which is no BOOL", t.Name, i, b)
			}
		}
	}
	return k, n, "", nil
}

// Values decodes the elements. Of 64-bit integers beyond 2^53 they are the
// nearest float64; comparing tensors is exact all the same.
func (t Tensor) Values() ([]float64, error) {
	k, n, _, err := t.check()
	if err != nil {
		return nil, err
	}
	out := make([]float64, n)
	k.decode(out, t.Bits)
	return out, nil
}

func decodeUint8(dst []float64, src []byte) {
	src = src[:len(dst)]
	for i := range dst {
		dst[i] = float64(src[i])
	}
}

func decodeInt8(dst []float64, src []byte) {
	src = src[:len(dst)]
	for i := range dst {
		dst[i] = float64(int8(src[i]))
	}
}

func decodeUint16(dst []float64, src []byte) {
	for i := range dst {
		dst[i] = float64(binary.LittleEndian.Uint16(src[2*i:]))
	}
}

func decodeInt16(dst []float64, src []byte) {
	for i := range dst {
		dst[i] = float64(int16(binary.LittleEndian.Uint16(src[2*i:])))
	}
}

func decodeUint32(dst []float64, src []byte) {
	for i := range dst {
		dst[i] = float64(binary.LittleEndian.Uint32(src[4*i:]))
	}
}

func decodeInt32(dst []float64, src []byte) {
	for i := range dst {
		dst[i] = float64(int32(binary.LittleEndian.Uint32(src[4*i:])))
	}
}

func decodeUint64(dst []float64, src []byte) {
	for i := range dst {
		dst[i] = float64(binary.LittleEndian.Uint64(src[8*i:]))
	}
}

func decodeInt64(dst []float64, src []byte) {
	for i := range dst {
		dst[i] = float64(int64(binary.LittleEndian.Uint64(src[8*i:])))
	}
}

// decodeFP16 reads IEEE 754 binary16: 1 sign bit, 5 of exponent, 10 of fraction.
func decodeFP16(dst []float64, src []byte) {
	for i := range dst {
		h := uint64(binary.LittleEndian.Uint16(src[2*i:]))
		f := math.Float64frombits(h&0x7fff<<42 + (1023-15)<<52)
		switch h & 0x7c00 {
		case 0: // zero, or subnormal
			f = float64(float64(h&0x3ff) * 0x1p-24)
		case 0x7c00: // infinite, or not a number
			f = math.Float64frombits(h&0x3ff<<42 | infinite)
		}
		dst[i] = math.Float64frombits(math.Float64bits(f) | h>>15<<63)
	}
}

// decodeBF16 reads bfloat16: the upper half of a float32.
func decodeBF16(dst []float64, src []byte) {
	for i := range dst {
		dst[i] = float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(src[2*i:])) << 16))
	}
}

func decodeFP32(dst []float64, src []byte) {
	for i := range dst {
		dst[i] = float64(math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:])))
	}
}

func decodeFP64(dst []float64, src []byte) {
	for i := range dst {
		dst[i] = math.Float64frombits(binary.LittleEndian.Uint64(src[8*i:]))
	}
}

func exactUint64(d []float64, want, got []byte) {
	for i := range d {
		w, g := binary.LittleEndian.Uint64(want[8*i:]), binary.LittleEndian.Uint64(got[8*i:])
		if g >= w {
			d[i] = float64(g - w)
		} else {
			d[i] = -float64(w - g)
		}
	}
}

func exactInt64(d []float64, want, got []byte) {
	for i := range d {
		w, g := int64(binary.LittleEndian.Uint64(want[8*i:])), int64(binary.LittleEndian.Uint64(got[8*i:]))
		if g >= w {
			d[i] = float64(uint64(g) - uint64(w))
		} else {
			d[i] = -float64(uint64(w) - uint64(g))
		}
	}
}

// The distance of two elements in units in the last place is the number of
// representable values from one to the other. For integers it is their
// difference; floats are mapped to integers in their order, both zeros to 0. Of
// elements that are not the same bits the distance may be 0, for the two zeros.

// stepsFloat16 is for FP16 and BF16.
func stepsFloat16(want, got []byte) (most uint64, differing int) {
	var far int64
	for i := 0; i+2 <= len(want) && i+2 <= len(got); i += 2 {
		a, b := int64(int16(binary.LittleEndian.Uint16(want[i:i+2]))), int64(int16(binary.LittleEndian.Uint16(got[i:i+2])))
		if a != b {
			differing++
		}
		x := ordered(a, math.MinInt16) - ordered(b, math.MinInt16)
		far = max(far, x, -x)
	}
	return uint64(far), differing
}

func stepsFP64(want, got []byte) (most uint64, differing int) {
	for i := 0; i+8 <= len(want) && i+8 <= len(got); i += 8 {
		a, b := int64(binary.LittleEndian.Uint64(want[i:i+8])), int64(binary.LittleEndian.Uint64(got[i:i+8]))
		if a != b {
			differing++
		}
		x, y := ordered(a, math.MinInt64), ordered(b, math.MinInt64)
		most = max(most, uint64(max(x, y))-uint64(min(x, y)))
	}
	return most, differing
}

func stepsInt64(want, got []byte) (most uint64, differing int) {
	for i := 0; i+8 <= len(want) && i+8 <= len(got); i += 8 {
		a, b := int64(binary.LittleEndian.Uint64(want[i:i+8])), int64(binary.LittleEndian.Uint64(got[i:i+8]))
		if a != b {
			differing++
		}
		most = max(most, uint64(max(a, b))-uint64(min(a, b)))
	}
	return most, differing
}

func stepsUint64(want, got []byte) (most uint64, differing int) {
	for i := 0; i+8 <= len(want) && i+8 <= len(got); i += 8 {
		a, b := binary.LittleEndian.Uint64(want[i:i+8]), binary.LittleEndian.Uint64(got[i:i+8])
		if a != b {
			differing++
		}
		most = max(most, max(a, b)-min(a, b))
	}
	return most, differing
}

func distanceFP32(want, got uint32) uint64 {
	x, y := ordered(int64(int32(want)), math.MinInt32), ordered(int64(int32(got)), math.MinInt32)
	return uint64(max(x, y) - min(x, y))
}

// ordered maps the bits of a float to integers in the order of the floats.
func ordered(bits, lowest int64) int64 {
	if bits < 0 {
		return lowest - bits
	}
	return bits
}
