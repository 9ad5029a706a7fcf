package stats

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
)

// A Generator draws random numbers that follow from its seed alone, on every
// machine: ChaCha8 (C2SP chacha8rand), and no method of math/rand/v2, of which
// some take another path on 32-bit machines and none promises its sequence.
// It is not safe for concurrent use.
type Generator struct{ source *rand.ChaCha8 }

// NewGenerator makes a generator whose seed is the SHA-256 of the parts, each
// with its length before it. The parts are what the result depends on (the
// digests of suite, criteria and plan) and a word for what is drawn, so that
// nobody can choose a seed, and no two draws share one.
func NewGenerator(parts ...string) *Generator {
	h := sha256.New()
	for _, p := range parts {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write([]byte(p))
	}
	return &Generator{rand.NewChaCha8([32]byte(h.Sum(nil)))}
}

// Below returns a number in [0, n), each with the same probability
// (Lemire, "Fast Random Integer Generation in an Interval", 2019).
func (g *Generator) Below(n int) int {
	if n <= 0 {
		panic("stats: Below needs a positive bound")
	}
	bound := uint64(n)
	hi, lo := bits.Mul64(g.source.Uint64(), bound)
	if lo < bound {
		for threshold := -bound % bound; lo < threshold; {
			hi, lo = bits.Mul64(g.source.Uint64(), bound)
		}
	}
	return int(hi)
}

// Shuffle puts n things into random order (Fisher and Yates).
func (g *Generator) Shuffle(n int, swap func(i, j int)) {
	for i := n - 1; i > 0; i-- {
		swap(i, g.Below(i+1))
	}
}
