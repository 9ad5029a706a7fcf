package attest

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"testing"

	"github.com/opencontainers/go-digest"
)

// The states are those of FIPS 180-4: its second example (NIST, "SHA-256
// examples", a message of two blocks) gives H(1).
func TestPieceStates(t *testing.T) {
	block := append([]byte("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"), 0x80, 0, 0, 0, 0, 0, 0, 0)
	h := digest.SHA256.Hash()
	h.Write(block)
	state, err := stateOf(h)
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(state); got != "85e655d6417a17953363376a624cde5c76e09589cac5f811cc4b32c1f20e533a" {
		t.Errorf("H(1) is %s", got)
	}
}

// Each piece is told from every other content of its size, alone; and lists
// are the same however the hash came to them.
func TestPieces(t *testing.T) {
	data := make([]byte, 3*PieceSize+1000)
	rand.NewChaCha8([32]byte{7}).Read(data)
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		h := NewPieceHash(alg)
		h.Write(data[:PieceSize+5])
		mark := h.Mark()
		kept := h.States()
		h.Write(data[PieceSize+5:])
		if h.Digest() != alg.FromBytes(data) {
			t.Fatalf("%s: the digest is wrong", alg)
		}
		p, ok := PiecesOf(h.Digest(), int64(len(data)), h.States())
		if !ok || p.Validate() != nil || p.Count() != 4 {
			t.Fatalf("%s: the list is %v %v with %d pieces", alg, ok, p.Validate(), p.Count())
		}
		again := NewPieceHash(alg)
		if err := again.Resume(PieceSize+5, mark, kept); err != nil {
			t.Fatal(err)
		}
		again.Write(data[PieceSize+5:])
		if !bytes.Equal(again.States(), h.States()) || again.Digest() != h.Digest() {
			t.Errorf("%s: a hash that was resumed comes to other states", alg)
		}
		lost := NewPieceHash(alg)
		if err := lost.Resume(PieceSize+5, mark, nil); err != nil {
			t.Fatal(err)
		}
		lost.Write(data[PieceSize+5:])
		if _, ok := PiecesOf(lost.Digest(), int64(len(data)), lost.States()); ok || lost.Digest() != h.Digest() {
			t.Errorf("%s: a hash whose states were lost has a list, or another digest", alg)
		}
		for i := range p.Count() {
			offset, n := p.Range(i)
			piece := bytes.Clone(data[offset : offset+n])
			if ok, err := p.Check(i, piece); !ok || err != nil {
				t.Errorf("%s: piece %d is not itself: %v", alg, i, err)
			}
			if ok, _ := p.Check(i, piece[1:]); ok {
				t.Errorf("%s: piece %d is right without its first byte", alg, i)
			}
			piece[n/2] ^= 1
			if ok, _ := p.Check(i, piece); ok {
				t.Errorf("%s: piece %d is right with another byte in it", alg, i)
			}
		}
		first, _ := p.Range(1)
		if ok, _ := p.Check(0, data[first:2*first]); ok {
			t.Errorf("%s: piece 1 passes for piece 0", alg)
		}
		// A list that was made up cannot be satisfied by all pieces.
		p.States[5] ^= 1
		wrong := 0
		for i := range p.Count() {
			offset, n := p.Range(i)
			if ok, _ := p.Check(i, data[offset:offset+n]); !ok {
				wrong++
			}
		}
		if wrong != 2 {
			t.Errorf("%s: a wrong state makes %d pieces wrong, not the two beside it", alg, wrong)
		}
	}
}

// Lists of huge blobs have larger pieces, and never outgrow a document.
func TestPiecesOfHugeBlobs(t *testing.T) {
	for _, pieces := range []int64{2, maxPieces, maxPieces + 1, 100_000} {
		states := make([]byte, pieces*64)
		for i := range pieces {
			states[i*64] = byte(i + 1)
		}
		p, ok := PiecesOf(digest.SHA512.FromString("x"), pieces*PieceSize-1, states)
		if !ok {
			t.Fatalf("%d pieces have no list", pieces)
		}
		if err := p.Validate(); err != nil {
			t.Errorf("%d pieces: %v", pieces, err)
		}
		if n := p.PieceSize / PieceSize; p.States[0] != byte(n) {
			t.Errorf("%d pieces: the first state is not that after %d", pieces, n)
		}
		raw, err := Marshal(p)
		if err != nil || len(raw) > MaxDocument {
			t.Errorf("%d pieces: a list of %d bytes, %v", pieces, len(raw), err)
		}
	}
	if _, ok := PiecesOf(digest.FromString("x"), PieceSize, make([]byte, 64)); ok {
		t.Error("a blob of one piece has a list")
	}
}
