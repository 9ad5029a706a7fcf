package compare

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// plainly compares as Tensors is documented to, one element at a time and with
// nothing clever: what Tensors returns has to have the same bits. ok is false if
// an element is not finite.
func plainly(want, got Tensor, tol Tolerance) (d Difference, ok bool) {
	width := Width(want.Datatype)
	d.Elements = len(want.Bits) / width
	for i := range d.Elements {
		a, b := want.Bits[i*width:(i+1)*width], got.Bits[i*width:(i+1)*width]
		w, wi := element(want.Datatype, a)
		g, gi := element(want.Datatype, b)
		x := g - w
		if wi != nil { // of an integer type: exactly, and then rounded once
			x, _ = new(big.Float).SetInt(new(big.Int).Sub(gi, wi)).Float64()
		}
		if w-w != 0 || g-g != 0 {
			return d, false
		}
		if math.IsInf(x, 0) {
			x = math.Copysign(math.MaxFloat64, x)
		}
		abs, allowed := math.Abs(x), tol.Absolute+float64(tol.Relative*math.Abs(w))
		if string(a) != string(b) {
			d.BitsDiffer++
		}
		if abs > allowed {
			d.Exceeding++
		}
		d.MaxAbs = max(d.MaxAbs, abs)
		if abs > float64(d.MaxScaled*allowed) {
			d.MaxScaled = math.MaxFloat64
			if allowed > 0 {
				d.MaxScaled = min(abs/allowed, math.MaxFloat64)
			}
		}
		d.MaxULP = max(d.MaxULP, apart(want.Datatype, a, b))
		d.Error += x
		d.SquaredError += float64(x * x)
		d.SquaredWant += float64(w * w)
		d.SquaredGot += float64(g * g)
		d.Product += float64(w * g)
		d.Histogram[Bucket(x)]++
	}
	return d, true
}

// element reads an element, by the definition of its type.
func element(datatype string, raw []byte) (float64, *big.Int) {
	var u uint64
	for i, b := range raw {
		u |= uint64(b) << (8 * i)
	}
	if f, ok := binaryFormats[datatype]; ok {
		bits := 8*f.width - 1
		sign := 1 - 2*float64(u>>bits)
		exponent, fraction := int(u>>f.fraction)&(1<<(bits-f.fraction)-1), u&(1<<f.fraction-1)
		switch {
		case exponent == 2*f.bias+1 && fraction != 0:
			return math.NaN(), nil
		case exponent == 2*f.bias+1:
			return math.Inf(int(sign)), nil
		case exponent == 0:
			return sign * math.Ldexp(float64(fraction), 1-f.bias-f.fraction), nil
		}
		return sign * math.Ldexp(float64(fraction|1<<f.fraction), exponent-f.bias-f.fraction), nil
	}
	n := new(big.Int).SetUint64(u)
	if datatype[0] == 'I' && u>>(8*len(raw)-1) == 1 {
		n.Sub(n, new(big.Int).Lsh(big.NewInt(1), uint(8*len(raw))))
	}
	x, _ := new(big.Float).SetInt(n).Float64()
	return x, n
}

// apart counts the values of the type from one element to the other.
func apart(datatype string, a, b []byte) uint64 {
	at := func(raw []byte) *big.Int {
		if _, n := element(datatype, raw); n != nil {
			return n
		}
		magnitude := slices.Clone(raw)
		magnitude[len(raw)-1] &= 0x7f
		slices.Reverse(magnitude)
		n := new(big.Int).SetBytes(magnitude)
		if raw[len(raw)-1]&0x80 != 0 {
			n.Neg(n)
		}
		return n
	}
	d := new(big.Int).Sub(at(a), at(b))
	return d.Abs(d).Uint64()
}

// drawn makes two tensors of n elements of a type, of which the second is near
// the first, or not, as a mood says.
func drawn(datatype string, n int, rng *rand.Rand, mood int) (want, got Tensor) {
	width := Width(datatype)
	want = Tensor{Name: "x", Datatype: datatype, Shape: []int64{int64(n)}, Bits: make([]byte, 0, n*width)}
	got = want
	got.Bits = make([]byte, 0, n*width)
	for range n {
		var raw [8]byte
		put := func(u uint64) []byte {
			if datatype == "BOOL" {
				u &= 1
			}
			binary.LittleEndian.PutUint64(raw[:], u)
			if f, ok := binaryFormats[datatype]; ok && mood < 7 {
				// Finite: not the largest exponent.
				all := uint64(2*f.bias+1) << f.fraction
				if v := binary.LittleEndian.Uint64(raw[:]); v&all == all {
					binary.LittleEndian.PutUint64(raw[:], v&^(1<<f.fraction))
				}
			}
			return raw[:width]
		}
		u := rng.Uint64()
		if f, ok := binaryFormats[datatype]; ok && rng.IntN(2) == 0 {
			// As activations are: around one.
			bits, _ := AppendFloat(nil, datatype, rng.NormFloat64())
			u = 0
			for i := range f.width {
				u |= uint64(bits[i]) << (8 * i)
			}
		}
		want.Bits = append(want.Bits, put(u)...)
		switch mood {
		case 0: // the same
		case 1, 2, 7: // a few steps beside it
			u += uint64(rng.IntN(5)) - 2
		case 3: // nearly always the same
			if rng.IntN(40) == 0 {
				u += uint64(rng.IntN(1 << 20))
			}
		case 4: // of the other sign
			u ^= 1 << (8*width - 1)
		case 5: // zeros and the smallest
			u = uint64(rng.IntN(3)) | uint64(rng.IntN(2))<<(8*width-1)
			copy(want.Bits[len(want.Bits)-width:], put(uint64(rng.IntN(3))|uint64(rng.IntN(2))<<(8*width-1)))
		default: // anything
			u = rng.Uint64()
		}
		got.Bits = append(got.Bits, put(u)...)
	}
	return want, got
}

// However the fast loops go about it, they return the bits of the plain one:
// every type, the sums in the order of the elements, with tolerances of which
// every, some and no difference are within.
func TestEqualToPlain(t *testing.T) {
	var types []string
	for datatype := range kinds {
		types = append(types, datatype)
	}
	slices.Sort(types)
	check := func(t *rapid.T, datatype string) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		mood := rapid.IntRange(0, 8).Draw(t, "mood")
		want, got := drawn(datatype, rapid.SampledFrom([]int{1, 2, 7, block - 1, block, block + 1, 2*block + 5}).Draw(t, "n"), rng, mood)
		bounds := []float64{0, 0, 1e-300, 1e-7, 1e-2, 1, 1e9, math.MaxFloat64}
		tol := Tolerance{rapid.SampledFrom(bounds).Draw(t, "absolute"), rapid.SampledFrom(bounds).Draw(t, "relative")}
		d, quick := Tensors(want, got, tol), Within(want, got, tol)
		plain, ok := plainly(want, got, tol)
		if !ok {
			if d.Fault != FaultNaN && d.Fault != FaultInf && d.Fault != FaultReference || quick.Fault != d.Fault || quick.Broken != d.Broken {
				t.Fatalf("not finite, and found %+v and %+v", d, quick)
			}
			return
		}
		if bits(d) != bits(plain) {
			t.Fatalf("%+v\nplainly\n%+v", d, plain)
		}
		plain = Difference{Elements: plain.Elements, Exceeding: plain.Exceeding, MaxAbs: plain.MaxAbs, MaxScaled: plain.MaxScaled}
		if bits(quick) != bits(plain) {
			t.Fatalf("within: %+v\nplainly\n%+v", quick, plain)
		}
	}
	for _, datatype := range types {
		t.Run(datatype, func(t *testing.T) { rapid.Check(t, func(t *rapid.T) { check(t, datatype) }) })
	}
}

// bits writes a difference so that two are the same only if all their bits are.
func bits(d Difference) string { return fmt.Sprintf("%x %d %s", d, d.Histogram, d.Broken) }

// A tolerance that is no number, or below zero, allows nothing; an endless one
// is the largest, and no product of it is NaN.
func TestTolerancesThatAreNone(t *testing.T) {
	want, got := f32("x", 0, 1, 2), f32("x", 0, 1.5, 2)
	for _, bad := range []float64{math.NaN(), -1, math.Inf(-1), math.Copysign(0, -1)} {
		for _, tol := range []Tolerance{{bad, 0}, {0, bad}, {bad, bad}} {
			for what, d := range map[string]Difference{"all": Tensors(want, got, tol), "within": Within(want, got, tol)} {
				if d.Exceeding != 1 || d.MaxScaled != math.MaxFloat64 {
					t.Errorf("%s, %v: %+v", what, tol, d)
				}
			}
		}
	}
	for _, tol := range []Tolerance{{math.Inf(1), 0}, {0, math.Inf(1)}} {
		if d := Tensors(want, got, tol); d.Exceeding != 0 || d.MaxScaled > 1 {
			t.Errorf("%v: %+v", tol, d)
		}
	}
}
