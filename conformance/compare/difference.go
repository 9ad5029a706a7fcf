package compare

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"sync"
)

// A Tolerance bounds a numeric difference: |got - want| <= Absolute +
// Relative*|want|.
type Tolerance struct {
	Absolute, Relative float64
}

// A Fault says why an answer cannot be compared with the golden one at all. It
// is never a pass, and counted by its name.
type Fault string

// Faults of tensors.
const (
	FaultMissing   Fault = "missing-output"
	FaultExtra     Fault = "extra-output"
	FaultReordered Fault = "reordered-output"
	FaultDatatype  Fault = "wrong-datatype"
	FaultShape     Fault = "wrong-shape"
	FaultValue     Fault = "no-value-of-its-type" // a BOOL of 2
	FaultEmpty     Fault = "empty-output"
	FaultNaN       Fault = "nan"
	FaultInf       Fault = "infinity"
	FaultReference Fault = "broken-reference" // the golden answer is the one with the fault
)

// A Difference is what Tensors found.
type Difference struct {
	// Fault and Broken say why the tensors cannot be compared: another name,
	// type or shape, or numbers that are not finite. Broken is for people.
	Fault  Fault
	Broken string

	Elements   int     // that were compared: all of them
	BitsDiffer int     // not the same bits
	Exceeding  int     // over the tolerance
	MaxAbs     float64 // largest |got - want|
	MaxScaled  float64 // largest |got - want| as a share of its tolerance; > 1 is over it
	MaxULP     uint64  // largest distance in units in the last place of the declared type

	// Sums over all elements, in their order.
	Error        float64 // of got - want
	SquaredError float64 // of (got - want)^2
	SquaredWant  float64
	SquaredGot   float64
	Product      float64 // of want * got

	Histogram Histogram // of |got - want|
}

// Cosine returns the cosine of the angle between the tensors, 1 for the same
// direction. It is 1 if both are zero, and 0 if one of them is: a direction
// that is not there agrees with none. It hides flips, so it is for reading
// beside other measures.
func (d Difference) Cosine() float64 {
	if d.SquaredWant == 0 && d.SquaredGot == 0 {
		return 1
	}
	if d.SquaredWant == 0 || d.SquaredGot == 0 {
		return 0
	}
	return math.Max(-1, math.Min(1, d.Product/float64(math.Sqrt(d.SquaredWant)*math.Sqrt(d.SquaredGot))))
}

// SNR returns the ratio of signal to error in decibels: +Inf without an error.
func (d Difference) SNR() float64 {
	if d.SquaredError == 0 {
		return math.Inf(1)
	}
	if d.SquaredWant == 0 {
		return math.Inf(-1)
	}
	return float64(10*ln(d.SquaredWant/d.SquaredError)) / math.Ln10
}

// Add takes up another difference of the same output. It does not take up
// faults: whoever adds has looked at them.
func (d *Difference) Add(o *Difference) {
	d.Elements += o.Elements
	d.BitsDiffer += o.BitsDiffer
	d.Exceeding += o.Exceeding
	d.MaxAbs, d.MaxScaled, d.MaxULP = math.Max(d.MaxAbs, o.MaxAbs), math.Max(d.MaxScaled, o.MaxScaled), max(d.MaxULP, o.MaxULP)
	d.Error += o.Error
	d.SquaredError += o.SquaredError
	d.SquaredWant += o.SquaredWant
	d.SquaredGot += o.SquaredGot
	d.Product += o.Product
	for i, n := range o.Histogram {
		d.Histogram[i] += n
	}
}

// A Histogram counts differences by size. The first bucket has those that are
// zero, bucket i those from 2^(i+lowest-1) up to twice that, and the last but
// for the first also what is smaller, the last what is larger.
type Histogram [buckets]uint32

const (
	buckets = 64
	lowest  = -48 // bucket 1 begins at 2^lowest
)

// Bucket returns the bucket of a difference.
func Bucket(x float64) int {
	return bucketOf(int(math.Float64bits(x) >> 52 & 0x7ff))
}

// bucketOf returns the bucket of a biased exponent. That of zero is also the one
// of numbers below 2^-1022, which nobody will miss.
func bucketOf(exponent int) int {
	if exponent == 0 {
		return 0
	}
	return min(max(exponent-1023-lowest+1, 1), buckets-1)
}

// From returns the smallest difference in a bucket, 0 for the first.
func From(bucket int) float64 {
	if bucket <= 0 {
		return 0
	}
	return math.Ldexp(1, bucket-1+lowest)
}

// block is how many elements are worked on at a time: three lists of float64
// that stay in the first-level cache.
const block = 512

type blocks struct {
	want, got, difference [block]float64

	wantBits, gotBits [4 * block]byte // the last elements of FP32, which fill no block

	counts exponents // of the differences; all zero between uses
}

var pool = sync.Pool{New: func() any { return new(blocks) }}

// An exponents table counts differences by their biased exponents.
type exponents [2048]uint32

// histogram takes the n counts out.
func (c *exponents) histogram(n int) (h Histogram) {
	for exponent := 0; exponent < len(c) && n > 0; exponent++ {
		if c[exponent] > 0 {
			h[bucketOf(exponent)] += c[exponent]
			n -= int(c[exponent])
			c[exponent] = 0
		}
	}
	return h
}

// Tensors compares every element by all measures.
func Tensors(want, got Tensor, tol Tolerance) Difference {
	d, k, n := prepare(want, got)
	if d.Fault != "" {
		return d
	}
	b := pool.Get().(*blocks)
	defer pool.Put(b)
	tol = tol.plain()
	for at := 0; at < n; at += block {
		m := min(block, n-at)
		wb, gb := want.Bits[at*k.width:(at+m)*k.width], got.Bits[at*k.width:(at+m)*k.width]
		finite := true
		if want.Datatype == "FP32" {
			finite = d.allFP32(b, m, wb, gb, tol)
		} else if finite = b.load(k, m, wb, gb); finite {
			d.all(b, m, tol)
			if k.steps != nil {
				most, differing := k.steps(wb, gb)
				d.MaxULP = max(d.MaxULP, most)
				d.BitsDiffer += differing
			}
		}
		if !finite {
			b.counts = exponents{}
			return notFinite(want, got, k)
		}
	}
	d.Elements = n
	if k.steps == nil {
		d.BitsDiffer += n - int(b.counts[0]) // no difference that is there has the exponent of zero
		if want.Datatype != "FP32" {
			d.MaxULP = uint64(d.MaxAbs)
		}
	}
	d.Histogram = b.counts.histogram(n)
	return d
}

// Within compares every element by the largest difference, the tolerance and
// whether it is a number at all: what a gate needs, and faster.
func Within(want, got Tensor, tol Tolerance) Difference {
	d, k, n := prepare(want, got)
	if d.Fault != "" {
		return d
	}
	b := pool.Get().(*blocks)
	defer pool.Put(b)
	tol = tol.plain()
	for at := 0; at < n; at += block {
		m := min(block, n-at)
		wb, gb := want.Bits[at*k.width:(at+m)*k.width], got.Bits[at*k.width:(at+m)*k.width]
		finite := true
		if want.Datatype == "FP32" {
			finite = d.withinFP32(b, m, wb, gb, tol)
		} else if finite = b.load(k, m, wb, gb); finite {
			d.within(b, m, tol)
		}
		if !finite {
			return notFinite(want, got, k)
		}
	}
	d.Elements = n
	return d
}

// Outputs pairs answers with golden outputs by name. Every golden output must be
// there once, in the order in which it was asked for, and nothing else: a runner
// that skips what it does not find (as some do, with a warning) passes
// environments that answer nothing. The faults are by output.
func Outputs(want, got []Tensor) map[string]Fault {
	faults := map[string]Fault{}
	golden := map[string]int{}
	for i, t := range want {
		golden[t.Name] = i
		faults[t.Name] = FaultMissing
	}
	seen := map[string]bool{}
	for i, t := range got {
		at, ok := golden[t.Name]
		switch {
		case !ok, seen[t.Name]:
			faults[t.Name] = FaultExtra
		case at != i:
			faults[t.Name] = FaultReordered
		default:
			delete(faults, t.Name)
		}
		seen[t.Name] = true
	}
	return faults
}

func broken(fault Fault, format string, a ...any) Difference {
	return Difference{Fault: fault, Broken: fmt.Sprintf(format, a...)}
}

// prepare checks that two tensors can be compared.
func prepare(want, got Tensor) (d Difference, k kind, n int) {
	switch {
	case got.Name != want.Name:
		return broken(FaultReordered, "output %q in the place of %q", got.Name, want.Name), k, 0
	case got.Datatype != want.Datatype:
		return broken(FaultDatatype, "output %s is %s, not %s", want.Name, got.Datatype, want.Datatype), k, 0
	case !slices.Equal(want.Shape, got.Shape):
		return broken(FaultShape, "output %s has shape %v, not %v", want.Name, got.Shape, want.Shape), k, 0
	}
	k, n, _, err := want.check()
	if err != nil {
		return broken(FaultReference, "reference: %v", err), k, 0
	}
	if _, _, fault, err := got.check(); err != nil {
		return broken(fault, "%v", err), k, 0
	}
	if n == 0 {
		return broken(FaultEmpty, "output %s has no elements", want.Name), k, 0
	}
	return Difference{}, k, n
}

// load decodes m elements and subtracts them. It returns false if one is not
// finite.
func (b *blocks) load(k kind, m int, want, got []byte) bool {
	w, g, d := b.want[:m], b.got[:m], b.difference[:m]
	k.decode(w, want)
	k.decode(g, got)
	if k.exact != nil {
		k.exact(d, want, got)
		return true
	}
	var most uint64
	for i := range d {
		d[i] = g[i] - w[i]
		most = max(most, math.Float64bits(d[i])&^sign)
	}
	if most >= infinite {
		for i := range d {
			if w[i]-w[i] != 0 || g[i]-g[i] != 0 {
				return false
			}
			if math.IsInf(d[i], 0) {
				d[i] = math.Copysign(math.MaxFloat64, d[i]) // of two FP64 far apart
			}
		}
	}
	return true
}

// Numbers without their sign are in the order of their bits.
const (
	sign     = 1 << 63
	infinite = 0x7ff << 52
)

// notFinite says which element is not finite, and whose.
func notFinite(want, got Tensor, k kind) Difference {
	w, g := make([]float64, len(want.Bits)/k.width), make([]float64, len(got.Bits)/k.width)
	k.decode(w, want.Bits)
	k.decode(g, got.Bits)
	for i := range w {
		if math.IsNaN(w[i]) || math.IsInf(w[i], 0) {
			return broken(FaultReference, "element %d of the reference's output %s is %v", i, want.Name, w[i])
		}
	}
	for i := range g {
		switch {
		case math.IsNaN(g[i]):
			return broken(FaultNaN, "element %d of output %s is %v", i, want.Name, g[i])
		case math.IsInf(g[i], 0):
			return broken(FaultInf, "element %d of output %s is %v", i, want.Name, g[i])
		}
	}
	return broken(FaultNaN, "output %s is not finite", want.Name)
}

// plain returns the tolerance with bounds from 0 up to the largest number. What
// is no number allows nothing.
func (t Tolerance) plain() Tolerance {
	for _, x := range []*float64{&t.Absolute, &t.Relative} {
		if !(*x > 0) {
			*x = 0
		}
		*x = math.Min(*x, math.MaxFloat64)
	}
	return t
}

// The loops below take one element after the other, so that the sums are in the
// order of the elements, which is part of the result. They are fast because they
// have no branch that goes both ways, whatever the data are: what is counted is
// computed, and a loop ends at an element that is a new maximum of some kind,
// which is rare. The caller takes it up with record and goes on behind it. That
// the work for one element is written out four times is for the same reason: the
// compiler keeps it all in registers, without checks of bounds.
//
// The conversions of products forbid the compiler to fuse multiply and add,
// which some machines have and others do not.

// record takes up an element that may be a new maximum: the difference without
// its sign, and the reference's value.
func (d *Difference) record(abs, want float64, tol Tolerance) {
	d.MaxAbs = math.Max(d.MaxAbs, abs)
	allowed := tol.Absolute + float64(math.Abs(want)*tol.Relative)
	if abs <= float64(d.MaxScaled*allowed) {
		return
	}
	d.MaxScaled = math.MaxFloat64 // no difference is allowed
	if allowed > 0 {
		d.MaxScaled = math.Min(abs/allowed, math.MaxFloat64)
	}
}

// scaled returns the share of its tolerance that a difference must be over to be
// a new maximum: nothing is over the largest.
func (d *Difference) scaled() float64 {
	if d.MaxScaled == math.MaxFloat64 {
		return math.Inf(1) // also times a tolerance of 0, as no number is over NaN
	}
	return d.MaxScaled
}

// all takes up m elements by all measures but the distance in units in the last
// place.
func (d *Difference) all(b *blocks, m int, tol Tolerance) {
	for i := 0; i < m; i++ {
		if i = d.scan(b, i, m, tol); i < m {
			d.record(math.Abs(b.difference[i]), b.want[i], tol)
		}
	}
}

// scan goes on from an element and returns the next that may be a new maximum,
// or m.
func (d *Difference) scan(b *blocks, from, m int, tol Tolerance) int {
	if from < 0 || m > block {
		panic("compare: outside of a block")
	}
	want, got, difference, counts := &b.want, &b.got, &b.difference, &b.counts
	absolute, relative := tol.Absolute, tol.Relative
	most, scaled := math.Float64bits(d.MaxAbs), d.scaled()
	exceeding := d.Exceeding
	e, ee, ww, gg, wg := d.Error, d.SquaredError, d.SquaredWant, d.SquaredGot, d.Product
	i := from
	for ; i < m; i++ {
		w, g, x := want[i], got[i], difference[i]
		e += x
		ee += float64(x * x)
		ww += float64(w * w)
		gg += float64(g * g)
		wg += float64(w * g)
		u := math.Float64bits(x)
		counts[u>>52&0x7ff]++
		u &^= sign
		allowed := absolute + float64(math.Abs(w)*relative)
		exceeding += int((math.Float64bits(allowed) - u) >> 63) // 1 if u is larger
		if u > most || math.Float64frombits(u) > float64(scaled*allowed) {
			break
		}
	}
	d.Exceeding = exceeding
	d.Error, d.SquaredError, d.SquaredWant, d.SquaredGot, d.Product = e, ee, ww, gg, wg
	return i
}

// within takes up m elements by the largest difference and the tolerance.
func (d *Difference) within(b *blocks, m int, tol Tolerance) {
	for i := 0; i < m; i++ {
		if i = d.scanWithin(b, i, m, tol); i < m {
			d.record(math.Abs(b.difference[i]), b.want[i], tol)
		}
	}
}

func (d *Difference) scanWithin(b *blocks, from, m int, tol Tolerance) int {
	if from < 0 || m > block {
		panic("compare: outside of a block")
	}
	want, difference := &b.want, &b.difference
	absolute, relative := tol.Absolute, tol.Relative
	most, scaled := math.Float64bits(d.MaxAbs), d.scaled()
	exceeding := d.Exceeding
	i := from
	for ; i < m; i++ {
		u := math.Float64bits(difference[i]) &^ sign
		allowed := absolute + float64(math.Abs(want[i])*relative)
		exceeding += int((math.Float64bits(allowed) - u) >> 63)
		if u > most || math.Float64frombits(u) > float64(scaled*allowed) {
			break
		}
	}
	d.Exceeding = exceeding
	return i
}

// A chunk is the elements of a block in FP32, of which not all need be there.
type chunk = [4 * block]byte

// chunks returns the m elements of both.
func (b *blocks) chunks(m int, want, got []byte) (*chunk, *chunk) {
	if m == block {
		return (*chunk)(want), (*chunk)(got)
	}
	copy(b.wantBits[:], want)
	copy(b.gotBits[:], got)
	return &b.wantBits, &b.gotBits
}

// allFP32 decodes m elements and takes them up by all measures; of those with
// different bits only the zeros, as the others are counted with the histogram.
// It returns false if an element is not finite.
func (d *Difference) allFP32(b *blocks, m int, want, got []byte, tol Tolerance) bool {
	wc, gc := b.chunks(m, want, got)
	for i := 0; i < m; i++ {
		if i = d.scanFP32(&b.counts, wc, gc, i, m, tol); i == m {
			break
		}
		w, g := binary.LittleEndian.Uint32(wc[4*i:]), binary.LittleEndian.Uint32(gc[4*i:])
		x := float64(math.Float32frombits(g)) - float64(math.Float32frombits(w))
		if x-x != 0 {
			return false
		}
		d.record(math.Abs(x), float64(math.Float32frombits(w)), tol)
		d.MaxULP = max(d.MaxULP, distanceFP32(w, g))
		if x == 0 && w != g {
			d.BitsDiffer++
		}
	}
	return true
}

// near is the largest distance of two FP32 that their bits show without a look
// at the signs: those of finite numbers with different signs are further apart,
// both ways round, because the bits of what is not finite lie between them.
const near = 1 << 23

func (d *Difference) scanFP32(counts *exponents, want, got *chunk, from, m int, tol Tolerance) int {
	if from < 0 || m > block {
		panic("compare: outside of a block")
	}
	_, _, _ = want[0], got[0], counts[0] // so that the loop need not ask whether they are nil
	absolute, relative := tol.Absolute, tol.Relative
	most, scaled := math.Float64bits(d.MaxAbs), d.scaled()
	steps := uint32(min(d.MaxULP, near))
	exceeding := d.Exceeding
	e, ee, ww, gg, wg := d.Error, d.SquaredError, d.SquaredWant, d.SquaredGot, d.Product
	i := from
	for ; i < m; i++ {
		a, c := binary.LittleEndian.Uint32(want[4*i:4*i+4]), binary.LittleEndian.Uint32(got[4*i:4*i+4])
		w, g := float64(math.Float32frombits(a)), float64(math.Float32frombits(c))
		x := g - w
		e += x
		ee += float64(x * x)
		ww += float64(w * w)
		gg += float64(g * g)
		wg += float64(w * g)
		u := math.Float64bits(x)
		counts[u>>52&0x7ff]++
		u &^= sign
		allowed := absolute + float64(math.Abs(w)*relative)
		exceeding += int((math.Float64bits(allowed) - u) >> 63)
		if c-a+steps > 2*steps || u > most || math.Float64frombits(u) > float64(scaled*allowed) {
			break
		}
	}
	d.Exceeding = exceeding
	d.Error, d.SquaredError, d.SquaredWant, d.SquaredGot, d.Product = e, ee, ww, gg, wg
	return i
}

// withinFP32 decodes m elements and takes them up by the largest difference and
// the tolerance. It returns false if one is not finite.
func (d *Difference) withinFP32(b *blocks, m int, want, got []byte, tol Tolerance) bool {
	wc, gc := b.chunks(m, want, got)
	for i := 0; i < m; i++ {
		if i = d.scanWithinFP32(wc, gc, i, m, tol); i == m {
			break
		}
		w := float64(math.Float32frombits(binary.LittleEndian.Uint32(wc[4*i:])))
		x := float64(math.Float32frombits(binary.LittleEndian.Uint32(gc[4*i:]))) - w
		if x-x != 0 {
			return false
		}
		d.record(math.Abs(x), w, tol)
	}
	return true
}

func (d *Difference) scanWithinFP32(want, got *chunk, from, m int, tol Tolerance) int {
	if from < 0 || m > block {
		panic("compare: outside of a block")
	}
	_, _ = want[0], got[0]
	absolute, relative := tol.Absolute, tol.Relative
	most, scaled := math.Float64bits(d.MaxAbs), d.scaled()
	exceeding := d.Exceeding
	i := from
	for ; i < m; i++ {
		w := float64(math.Float32frombits(binary.LittleEndian.Uint32(want[4*i : 4*i+4])))
		u := math.Float64bits(float64(math.Float32frombits(binary.LittleEndian.Uint32(got[4*i:4*i+4])))-w) &^ sign
		allowed := absolute + float64(math.Abs(w)*relative)
		exceeding += int((math.Float64bits(allowed) - u) >> 63)
		if u > most || math.Float64frombits(u) > float64(scaled*allowed) {
			break
		}
	}
	d.Exceeding = exceeding
	return i
}
