package compare

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// pair makes two FP32 tensors of n elements, of which the second has noise in
// its low bits, as another runtime makes it.
func pair(n int) (want, got Tensor) {
	rng := rand.New(rand.NewPCG(1, 2))
	want = Tensor{Name: "x", Datatype: "FP32", Shape: []int64{int64(n)}, Bits: make([]byte, 4*n)}
	got = want
	got.Bits = make([]byte, 4*n)
	for i := range n {
		v := float32(rng.NormFloat64())
		binary.LittleEndian.PutUint32(want.Bits[4*i:], math.Float32bits(v))
		binary.LittleEndian.PutUint32(got.Bits[4*i:], math.Float32bits(v)+uint32(rng.IntN(5))-2)
	}
	return want, got
}

// The limit beside the figure: reading the same bytes and doing nothing with
// them but to add them up, in the same run. A figure below what it must reach
// fails the benchmark, as a missed row does in the others; the data are such
// that a branch for each difference would not do, because some are within the
// tolerance, some over it, and some are none.
func BenchmarkCompareFP32(b *testing.B) {
	want, got := pair(8 << 20)
	bytes := int64(len(want.Bits) + len(got.Bits))
	bandwidth := func() float64 {
		start := time.Now()
		var sum uint64
		for _, raw := range [][]byte{want.Bits, got.Bits} {
			for len(raw) >= 32 {
				sum += binary.LittleEndian.Uint64(raw) + binary.LittleEndian.Uint64(raw[8:]) + binary.LittleEndian.Uint64(raw[16:]) + binary.LittleEndian.Uint64(raw[24:])
				raw = raw[32:]
			}
		}
		if sum == 0 {
			b.Error("nothing was read")
		}
		return float64(bytes) / 1e9 / time.Since(start).Seconds()
	}
	for _, m := range []struct {
		name  string
		f     func(want, got Tensor, tol Tolerance) Difference
		tol   Tolerance
		least float64 // GB/s of both
	}{
		{"all-measures", Tensors, Tolerance{1e-6, 1e-6}, 1.5},
		{"all-measures/some-exceed", Tensors, Tolerance{1e-7, 1e-7}, 1.5},
		{"max-tolerance-nan", Within, Tolerance{1e-6, 1e-6}, 2},
		{"max-tolerance-nan/some-exceed", Within, Tolerance{1e-7, 1e-7}, 2},
	} {
		b.Run(m.name, func(b *testing.B) {
			// The best of all rounds, on both sides: others use this machine.
			memory, best := 0.0, 0.0
			for b.Loop() {
				start := time.Now()
				if d := m.f(want, got, m.tol); d.Fault != "" || d.Elements != 8<<20 {
					b.Fatal(d.Broken)
				}
				best = max(best, float64(bytes)/1e9/time.Since(start).Seconds())
				b.StopTimer()
				memory = max(memory, bandwidth())
				b.StartTimer()
			}
			b.ReportMetric(best, "GB/s")
			b.ReportMetric(memory, "memory-GB/s")
			b.ReportMetric(m.least, "least-GB/s")
			if b.N > 1 && best < m.least {
				b.Errorf("%.2f GB/s, and %.2f are needed", best, m.least)
			}
		})
	}
}

// The other types have no figure to reach. They are printed in elements too, as
// a type of half the width has twice as many in a byte.
func BenchmarkCompareOthers(b *testing.B) {
	for _, datatype := range []string{"FP64", "FP16", "BF16", "INT8", "INT32", "INT64"} {
		want, got := drawn(datatype, 1<<20, rand.New(rand.NewPCG(1, 2)), 2)
		for what, f := range map[string]func(want, got Tensor, tol Tolerance) Difference{"all-measures": Tensors, "max-tolerance-nan": Within} {
			b.Run(datatype+"/"+what, func(b *testing.B) {
				b.SetBytes(int64(len(want.Bits) + len(got.Bits)))
				for b.Loop() {
					if d := f(want, got, Tolerance{1e-6, 1e-6}); d.Fault != "" {
						b.Fatal(d.Broken)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(1<<20), "ns/element")
			})
		}
	}
}
