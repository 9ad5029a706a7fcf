package attest

import (
	"bytes"
	_ "crypto/sha256" // the algorithms that digests may have
	_ "crypto/sha512"
	"encoding"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"math"

	"github.com/opencontainers/go-digest"
)

const (
	// PieceSize is the size of the pieces whose hash states a registry keeps,
	// in bytes.
	PieceSize = 16 << 20

	// maxPieces bounds a list, so that it stays below MaxDocument: blobs with
	// more pieces get a list of larger ones.
	maxPieces = 32 << 10
)

// Pieces lets a reader check any piece of a large blob on its own, and so
// fetch its pieces in any order and by several connections, or ask again for
// the one that was damaged.
//
// It has no hashes of pieces, but the states in which SHA-256 (or SHA-512)
// was after each of them while the whole blob was hashed: the H(i) of FIPS
// 180-4, section 6.2.2. From the state before a piece and its bytes follows
// the state after it. So
//
//   - making the list costs nothing: the blob is hashed once, as it must be;
//   - a reader of all pieces who has checked each of them has computed the
//     digest of the blob, on as many cores as it likes. It need not trust
//     whoever made the list: no list that is wrong fits to the digest;
//   - a reader of some pieces relies on the list, and so on who gave it.
type Pieces struct {
	Blob      digest.Digest `json:"blob"`
	Size      int64         `json:"size"`      // of the blob, in bytes
	PieceSize int64         `json:"pieceSize"` // of each piece but the last, in bytes

	// States are the states after each piece but the last, one after another:
	// words in big-endian order, 32 bytes for SHA-256, 64 for SHA-512. What
	// follows the last piece is the digest.
	States []byte `json:"states"`
}

// PiecesOf makes the list for a blob from the states after each PieceSize
// bytes of it. A blob that is one piece has none, and so has one of which
// states are missing: ok is false.
func PiecesOf(blob digest.Digest, size int64, states []byte) (p Pieces, ok bool) {
	n := stateSize(blob.Algorithm())
	if size <= PieceSize || n == 0 {
		return Pieces{}, false
	}
	count := int((size - 1) / PieceSize)
	if len(states) < count*n {
		return Pieces{}, false
	}
	states = states[:count*n]
	p = Pieces{Blob: blob, Size: size, PieceSize: PieceSize}
	step := 1
	for count/step >= maxPieces {
		step *= 2
	}
	p.PieceSize *= int64(step)
	for i := step; i <= count; i += step {
		p.States = append(p.States, states[(i-1)*n:i*n]...)
	}
	return p, len(p.States) > 0
}

// Validate says what is missing or contradictory, or nil.
func (p Pieces) Validate() error {
	if err := p.Blob.Validate(); err != nil {
		return fmt.Errorf("blob: %w", err)
	}
	n := stateSize(p.Blob.Algorithm())
	switch {
	case n == 0:
		return fmt.Errorf("blob: %s has no known states", p.Blob.Algorithm())
	case p.PieceSize <= 0 || p.PieceSize%blockSize(p.Blob.Algorithm()) != 0:
		return fmt.Errorf("pieceSize is %d: no multiple of the hash's block", p.PieceSize)
	case p.Size <= p.PieceSize:
		return fmt.Errorf("size is %d: a blob of one piece has no list", p.Size)
	case p.Size > math.MaxInt64-p.PieceSize:
		return fmt.Errorf("size is %d", p.Size)
	case int64(len(p.States)) != (p.Size-1)/p.PieceSize*int64(n):
		return fmt.Errorf("states have %d bytes: %d pieces but the last need %d", len(p.States), (p.Size-1)/p.PieceSize, (p.Size-1)/p.PieceSize*int64(n))
	}
	return nil
}

// Count is the number of pieces.
func (p Pieces) Count() int { return int((p.Size-1)/p.PieceSize) + 1 }

// Range is where a piece begins and how many bytes it has.
func (p Pieces) Range(i int) (offset, length int64) {
	offset = int64(i) * p.PieceSize
	return offset, min(p.PieceSize, p.Size-offset)
}

// Check reports whether data is piece i, by the list. p must be valid.
func (p Pieces) Check(i int, data []byte) (bool, error) {
	c, err := p.Piece(i)
	if err != nil {
		return false, err
	}
	c.Write(data)
	return c.Right()
}

// Piece begins the check of piece i as its bytes come. p must be valid.
func (p Pieces) Piece(i int) (*PieceCheck, error) {
	c := &PieceCheck{p: p, i: i, h: p.Blob.Algorithm().Hash()}
	if i > 0 {
		n := c.h.Size()
		if err := setState(c.h, p.States[(i-1)*n:i*n], int64(i)*p.PieceSize); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// A PieceCheck compares one piece with its list. It belongs to one goroutine.
type PieceCheck struct {
	p Pieces
	i int
	h hash.Hash
	n int64
}

// Write implements io.Writer. It never fails.
func (c *PieceCheck) Write(data []byte) (int, error) {
	c.n += int64(len(data))
	return c.h.Write(data)
}

// Right reports whether what was written is the piece.
func (c *PieceCheck) Right() (bool, error) {
	if _, length := c.p.Range(c.i); c.n != length {
		return false, nil
	}
	if c.i == c.p.Count()-1 {
		return digest.NewDigest(c.p.Blob.Algorithm(), c.h) == c.p.Blob, nil
	}
	state, err := stateOf(c.h)
	n := c.h.Size()
	return bytes.Equal(state, c.p.States[c.i*n:(c.i+1)*n]), err
}

// A PieceHash hashes a blob and keeps the states that make its [Pieces]. It
// belongs to one goroutine.
type PieceHash struct {
	alg    digest.Algorithm
	h      hash.Hash
	n      int64
	states []byte
	lost   bool // some of them, so none are of use
}

// NewPieceHash returns the hash of no bytes. alg is SHA-256 or SHA-512.
func NewPieceHash(alg digest.Algorithm) *PieceHash { return &PieceHash{alg: alg, h: alg.Hash()} }

// Write implements io.Writer. It never fails.
func (p *PieceHash) Write(data []byte) (int, error) {
	for rest := data; len(rest) > 0; {
		part := rest[:min(int64(len(rest)), PieceSize-p.n%PieceSize)]
		p.h.Write(part)
		p.n += int64(len(part))
		rest = rest[len(part):]
		if p.n%PieceSize == 0 && !p.lost {
			state, err := stateOf(p.h)
			if err != nil {
				panic(err) // the standard library's hashes have states
			}
			p.states = append(p.states, state...)
		}
	}
	return len(data), nil
}

// Len is how many bytes were written.
func (p *PieceHash) Len() int64 { return p.n }

// Digest is of what was written.
func (p *PieceHash) Digest() digest.Digest { return digest.NewDigest(p.alg, p.h) }

// States are those after each PieceSize bytes written; none if some were lost.
func (p *PieceHash) States() []byte { return p.states }

// StateSize is the length of one of them.
func (p *PieceHash) StateSize() int { return stateSize(p.alg) }

// Mark returns the hash's whole state, for Resume.
func (p *PieceHash) Mark() []byte {
	raw, err := p.h.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		panic(err) // the standard library's hashes have states
	}
	return raw
}

// Resume sets the hash to a mark that was made after n bytes, with the states
// of the pieces before it. States that are missing leave it without a list,
// and able to hash.
func (p *PieceHash) Resume(n int64, mark, states []byte) error {
	p.h = p.alg.Hash()
	p.n, p.states = n, nil
	if n > 0 {
		if err := p.h.(encoding.BinaryUnmarshaler).UnmarshalBinary(mark); err != nil {
			return err
		}
	}
	want := int(n/PieceSize) * stateSize(p.alg)
	if p.lost = len(states) < want; !p.lost {
		p.states = bytes.Clone(states[:want])
	}
	return nil
}

func stateSize(alg digest.Algorithm) int {
	switch alg {
	case digest.SHA256, digest.SHA512:
		return alg.Size()
	}
	return 0
}

func blockSize(alg digest.Algorithm) int64 { return int64(alg.Hash().BlockSize()) }

// The standard library writes the state of its SHA-2 hashes as four letters,
// the words, a block for what is left over, and the length (crypto/sha256 and
// crypto/sha512, AppendBinary). TestPieceStates holds it to FIPS 180-4.
const magic = 4

// stateOf returns the words of a hash that stands at a multiple of its block.
func stateOf(h hash.Hash) ([]byte, error) {
	raw, err := h.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		return nil, err
	}
	if len(raw) != magic+h.Size()+h.BlockSize()+8 {
		return nil, errors.New("the hash's state is not in the form that is known")
	}
	return raw[magic : magic+h.Size()], nil
}

// setState makes a hash one that stands at a multiple of its block.
func setState(h hash.Hash, state []byte, n int64) error {
	raw, err := h.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		return err
	}
	copy(raw[magic:], state)
	binary.BigEndian.PutUint64(raw[len(raw)-8:], uint64(n))
	return h.(encoding.BinaryUnmarshaler).UnmarshalBinary(raw)
}
