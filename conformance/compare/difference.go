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

	counts exponents // of the differences; all zero between uses
}

var pool = sync.Pool{New: func() any { return new(blocks) }}

// histogram takes the n counts out.
func (b *blocks) histogram(n int) (h Histogram) {
	for exponent := 0; exponent < 2048 && n > 0; exponent++ {
		c := b.counts[0][exponent] + b.counts[1][exponent]
		if c > 0 {
			h[bucketOf(exponent)] += c
			b.counts[0][exponent], b.counts[1][exponent] = 0, 0
			n -= int(c)
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
	for at := 0; at < n; at += block {
		m := min(block, n-at)
		wb, gb := want.Bits[at*k.width:(at+m)*k.width], got.Bits[at*k.width:(at+m)*k.width]
		most, ok := b.load(want.Datatype, k, m, wb, gb, &d)
		if !ok {
			b.counts = exponents{}
			return notFinite(want, got, k)
		}
		d.MaxAbs = math.Max(d.MaxAbs, most)
		d.worst(b.want[:m], b.difference[:m], tol)
		b.counts.add(b.difference[:m])
		steps, differing := k.steps(wb, gb)
		d.MaxULP = max(d.MaxULP, steps)
		d.BitsDiffer += differing
	}
	d.Elements = n
	d.Histogram = b.histogram(n)
	return d
}

// Within compares every element by the largest difference, the tolerance and
// whether it is a number at all: what a gate needs, and twice as fast.
func Within(want, got Tensor, tol Tolerance) Difference {
	d, k, n := prepare(want, got)
	if d.Fault != "" {
		return d
	}
	b := pool.Get().(*blocks)
	defer pool.Put(b)
	for at := 0; at < n; at += block {
		m := min(block, n-at)
		most, ok := b.load(want.Datatype, k, m, want.Bits[at*k.width:(at+m)*k.width], got.Bits[at*k.width:(at+m)*k.width], nil)
		if !ok {
			return notFinite(want, got, k)
		}
		d.MaxAbs = math.Max(d.MaxAbs, most)
		d.worst(b.want[:m], b.difference[:m], tol)
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

// load decodes m elements and subtracts them, and adds them up if sums is
// there. It returns the largest difference, or false if an element is not
// finite. FP32 has loops of its own, as most of what is compared is FP32.
func (b *blocks) load(datatype string, k kind, m int, want, got []byte, sums *Difference) (float64, bool) {
	w, g, d := b.want[:m], b.got[:m], b.difference[:m]
	var most uint64 // differences without their sign are in the order of their bits
	if datatype == "FP32" {
		if sums != nil {
			most = sums.sumsFP32(w, d, want, got)
		} else {
			most = loadFP32(w, d, want, got)
		}
		return math.Float64frombits(most), most < infinite
	}
	k.decode(w, want)
	k.decode(g, got)
	if k.exact != nil {
		k.exact(d, want, got)
	} else {
		for i := range d {
			d[i] = g[i] - w[i]
		}
	}
	for _, x := range d {
		most = max(most, math.Float64bits(x)&^sign)
	}
	if most >= infinite {
		for i := range d {
			if w[i]-w[i] != 0 || g[i]-g[i] != 0 {
				return 0, false
			}
			if math.IsInf(d[i], 0) {
				d[i] = math.Copysign(math.MaxFloat64, d[i]) // of two FP64 far apart
			}
		}
		most = math.Float64bits(math.MaxFloat64)
	}
	if sums != nil {
		sums.sums(w, g, d)
	}
	return math.Float64frombits(most), true
}

const (
	sign     = 1 << 63
	infinite = 0x7ff << 52
)

// loadFP32 decodes, subtracts, and returns the bits of the largest difference.
func loadFP32(want, difference []float64, wantBits, gotBits []byte) (most uint64) {
	n := len(difference)
	want, wantBits, gotBits = want[:n], wantBits[:4*n], gotBits[:4*n]
	for i := range difference {
		w := float64(math.Float32frombits(binary.LittleEndian.Uint32(wantBits[4*i : 4*i+4])))
		x := float64(math.Float32frombits(binary.LittleEndian.Uint32(gotBits[4*i:4*i+4]))) - w
		want[i], difference[i] = w, x
		most = max(most, math.Float64bits(x)&^sign)
	}
	return most
}

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

// worst looks for differences over the tolerance, and for the one that uses up
// most of its own.
func (d *Difference) worst(want, difference []float64, tol Tolerance) {
	want = want[:len(difference)]
	// Few differences are over their tolerance or set a new maximum. Those
	// below a share of it that is a little smaller than both, so that rounding
	// plays no part, need no closer look.
	share := math.Min(d.MaxScaled, 1) * (1 - 0x1p-40)
	absolute, relative := share*tol.Absolute, share*tol.Relative
	for i, x := range difference {
		abs := math.Float64frombits(math.Float64bits(x) &^ sign)
		// The conversion forbids the compiler to fuse multiply and add, which
		// some machines have and others do not.
		if abs <= absolute+float64(math.Abs(want[i])*relative) {
			continue
		}
		allowed := tol.Absolute + float64(tol.Relative*math.Abs(want[i]))
		if abs > allowed {
			d.Exceeding++
		}
		if abs <= float64(d.MaxScaled*allowed) {
			continue
		}
		d.MaxScaled = math.MaxFloat64 // no difference is allowed
		if allowed > 0 {
			d.MaxScaled = math.Min(abs/allowed, math.MaxFloat64)
		}
		share = math.Min(d.MaxScaled, 1) * (1 - 0x1p-40)
		absolute, relative = share*tol.Absolute, share*tol.Relative
	}
}

// sums adds up in the order of the elements, which is part of the result.
func (d *Difference) sums(want, got, difference []float64) {
	want, got = want[:len(difference)], got[:len(difference)]
	for i, x := range difference {
		w, g := want[i], got[i]
		d.Error += x
		d.SquaredError += float64(x * x)
		d.SquaredWant += float64(w * w)
		d.SquaredGot += float64(g * g)
		d.Product += float64(w * g)
	}
}

// sumsFP32 decodes, subtracts, adds up as sums does, and returns the bits of the
// largest difference.
func (d *Difference) sumsFP32(want, difference []float64, wantBits, gotBits []byte) (most uint64) {
	n := len(difference)
	want, wantBits, gotBits = want[:n], wantBits[:4*n], gotBits[:4*n]
	e, ee, ww, gg, wg := d.Error, d.SquaredError, d.SquaredWant, d.SquaredGot, d.Product
	for i := range difference {
		w := float64(math.Float32frombits(binary.LittleEndian.Uint32(wantBits[4*i : 4*i+4])))
		g := float64(math.Float32frombits(binary.LittleEndian.Uint32(gotBits[4*i : 4*i+4])))
		x := g - w
		want[i], difference[i] = w, x
		most = max(most, math.Float64bits(x)&^sign)
		e += x
		ee += float64(x * x)
		ww += float64(w * w)
		gg += float64(g * g)
		wg += float64(w * g)
	}
	d.Error, d.SquaredError, d.SquaredWant, d.SquaredGot, d.Product = e, ee, ww, gg, wg
	return most
}

// An exponents table counts differences by their exponents; two of them, because
// a machine waits for a count that it has only just changed.
type exponents [2][2048]uint32

func (c *exponents) add(difference []float64) {
	i := 0
	for ; i+2 <= len(difference); i += 2 {
		c[0][math.Float64bits(difference[i])>>52&0x7ff]++
		c[1][math.Float64bits(difference[i+1])>>52&0x7ff]++
	}
	if i < len(difference) {
		c[0][math.Float64bits(difference[i])>>52&0x7ff]++
	}
}
