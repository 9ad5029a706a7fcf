// Package tlog is the mathematics and the formats of the transparency log:
// RFC 6962 Merkle hashes, C2SP signed checkpoints, tiles and proofs. It keeps
// nothing: hashes come from a [HashReader], which the registry backs with the
// rows it commits together with the leaves.
//
// Formats: https://c2sp.org/tlog-checkpoint, https://c2sp.org/tlog-tiles,
// https://c2sp.org/tlog-proof, https://c2sp.org/signed-note.
package tlog

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/transparency-dev/formats/proof"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// MaxLeaf is the largest leaf, in bytes: entry bundles have 16-bit lengths.
const MaxLeaf = 65535

type (
	// A Hash is a node of the tree.
	Hash = tlog.Hash

	// A HashReader reads stored hashes by index; see tlog.StoredHashIndex.
	HashReader = tlog.HashReader

	// HashReaderFunc is a function that is a HashReader.
	HashReaderFunc = tlog.HashReaderFunc

	// A Tree is a size and a root hash.
	Tree = tlog.Tree
)

// LeafHash returns the hash of a leaf.
func LeafHash(leaf []byte) Hash { return tlog.RecordHash(leaf) }

// StoredHashes returns the hashes to store when leaf number n is added, and
// the index of the first of them.
func StoredHashes(n int64, leaf []byte, r HashReader) (first int64, hashes []Hash, err error) {
	hashes, err = tlog.StoredHashes(n, leaf, r)
	return tlog.StoredHashIndex(0, n), hashes, err
}

// StoredHashCount is the number of hashes stored for a log of n leaves.
func StoredHashCount(n int64) int64 { return tlog.StoredHashCount(n) }

// LeafHashIndex is the index of the stored hash of leaf number n.
func LeafHashIndex(n int64) int64 { return tlog.StoredHashIndex(0, n) }

// TreeHash returns the root of the tree of the first n leaves.
func TreeHash(n int64, r HashReader) (Hash, error) { return tlog.TreeHash(n, r) }

// A Signer signs checkpoints in the name of one log.
type Signer struct {
	origin string
	signer note.Signer
	vkey   string
}

// NewSigner returns the signer of the log called origin. The verifier key
// that clients need is [Signer.VerifierKey].
func NewSigner(origin string, key ed25519.PrivateKey) (*Signer, error) {
	if origin == "" || strings.ContainsAny(origin, " +\n\t") {
		return nil, fmt.Errorf("log origin %q is empty or has a space or a plus sign in it", origin)
	}
	vkey, err := note.NewEd25519VerifierKey(origin, key.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, err
	}
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		return nil, err
	}
	return &Signer{origin, &noteSigner{origin, verifier.KeyHash(), key}, vkey}, nil
}

// Origin is the name of the log, the first line of its checkpoints.
func (s *Signer) Origin() string { return s.origin }

// VerifierKey is the log's public key in the form of a signed note's verifier
// key: <name>+<hash>+<key>.
func (s *Signer) VerifierKey() string { return s.vkey }

// Checkpoint signs a tree.
//
// "The note text … <origin>, <tree size>, <root hash>, each followed by a
// newline" (C2SP tlog-checkpoint).
func (s *Signer) Checkpoint(t Tree) ([]byte, error) {
	text := fmt.Sprintf("%s\n%d\n%s\n", s.origin, t.N, t.Hash)
	return note.Sign(&note.Note{Text: text}, s.signer)
}

type noteSigner struct {
	name string
	hash uint32
	key  ed25519.PrivateKey
}

func (s *noteSigner) Name() string                    { return s.name }
func (s *noteSigner) KeyHash() uint32                 { return s.hash }
func (s *noteSigner) Sign(msg []byte) ([]byte, error) { return ed25519.Sign(s.key, msg), nil }

// OpenCheckpoint verifies a checkpoint under a verifier key and returns its
// tree. The origin must be the key's name.
func OpenCheckpoint(checkpoint []byte, vkey string) (Tree, error) {
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		return Tree{}, fmt.Errorf("verifier key: %w", err)
	}
	n, err := note.Open(checkpoint, note.VerifierList(verifier))
	if err != nil {
		return Tree{}, fmt.Errorf("checkpoint: %w", err)
	}
	lines := strings.Split(n.Text, "\n")
	if len(lines) < 4 {
		return Tree{}, errors.New("checkpoint: fewer than three lines")
	}
	if lines[0] != verifier.Name() {
		return Tree{}, fmt.Errorf("checkpoint is of log %q, the key is of %q", lines[0], verifier.Name())
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 || lines[1] != strconv.FormatInt(size, 10) {
		return Tree{}, fmt.Errorf("checkpoint: %q is no tree size", lines[1])
	}
	root, err := tlog.ParseHash(lines[2])
	if err != nil {
		return Tree{}, fmt.Errorf("checkpoint: root hash: %w", err)
	}
	return Tree{N: size, Hash: root}, nil
}

// Prove returns a self-contained C2SP tlog-proof that leaf is leaf number
// index of the log that the checkpoint speaks of. The leaf travels inside, as
// the proof's extra data.
func Prove(leaf []byte, index int64, t Tree, checkpoint []byte, r HashReader) ([]byte, error) {
	if index < 0 || index >= t.N {
		return nil, fmt.Errorf("leaf %d is not in a log of %d", index, t.N)
	}
	hashes, err := tlog.ProveRecord(t.N, index, r)
	if err != nil {
		return nil, err
	}
	p := proof.TLogProof{Index: uint64(index), Checkpoint: checkpoint, ExtraData: leaf}
	for _, h := range hashes {
		p.Hashes = append(p.Hashes, h)
	}
	return p.Marshal(), nil
}

// A Proven is what a verified proof says.
type Proven struct {
	Leaf  []byte
	Index int64
	Tree  Tree
}

// Verify checks a proof made by [Prove] offline, under the log's verifier key.
func Verify(raw []byte, vkey string) (*Proven, error) {
	var p proof.TLogProof
	if err := p.Unmarshal(raw); err != nil {
		return nil, err
	}
	t, err := OpenCheckpoint(p.Checkpoint, vkey)
	if err != nil {
		return nil, err
	}
	if len(p.ExtraData) == 0 {
		return nil, errors.New("the proof does not carry its leaf")
	}
	if p.Index >= uint64(t.N) {
		return nil, fmt.Errorf("leaf %d is not in a log of %d", p.Index, t.N)
	}
	hashes := make(tlog.RecordProof, len(p.Hashes))
	for i, h := range p.Hashes {
		hashes[i] = h
	}
	if err := tlog.CheckRecord(hashes, t.N, t.Hash, int64(p.Index), LeafHash(p.ExtraData)); err != nil {
		return nil, fmt.Errorf("the leaf is not where the proof says: %w", err)
	}
	return &Proven{Leaf: p.ExtraData, Index: int64(p.Index), Tree: t}, nil
}

// TileHeight is the height of tiles: "256 hashes wide" (C2SP tlog-tiles).
const (
	TileHeight = 8
	TileWidth  = 1 << TileHeight
)

// A TilePath is a parsed path of a tile or an entry bundle.
type TilePath struct {
	Entries bool
	Level   int
	Index   int64
	Width   int // 1 to TileWidth
}

// ParseTilePath parses the path of a tile below the log's prefix, such as
// "tile/0/x001/234.p/5" or "tile/entries/000".
//
// "The index is encoded in groups of three digits, all but the last with an x
// in front; .p/<W> for a partial tile" (C2SP tlog-tiles).
func ParseTilePath(path string) (TilePath, error) {
	bad := func() (TilePath, error) { return TilePath{}, fmt.Errorf("%q is no path of a tile", path) }
	rest, ok := strings.CutPrefix(path, "tile/")
	if !ok {
		return bad()
	}
	p := TilePath{Width: TileWidth}
	level, rest, ok := strings.Cut(rest, "/")
	switch {
	case !ok:
		return bad()
	case level == "entries":
		p.Entries = true
	default:
		n, err := strconv.Atoi(level)
		if err != nil || n < 0 || n > 63 || level != strconv.Itoa(n) {
			return bad()
		}
		p.Level = n
	}
	if whole, width, ok := strings.Cut(rest, ".p/"); ok {
		n, err := strconv.Atoi(width)
		if err != nil || n < 1 || n >= TileWidth || width != strconv.Itoa(n) {
			return bad()
		}
		rest, p.Width = whole, n
	}
	groups := strings.Split(rest, "/")
	for i, g := range groups {
		if i < len(groups)-1 {
			if g, ok = strings.CutPrefix(g, "x"); !ok {
				return bad()
			}
		}
		n, err := strconv.Atoi(g)
		if len(g) != 3 || err != nil || n < 0 || p.Index > 1<<50 {
			return bad()
		}
		p.Index = p.Index*1000 + int64(n)
	}
	if p.String() != path {
		return bad() // leading groups of zeros
	}
	return p, nil
}

// String is the reverse of [ParseTilePath].
func (p TilePath) String() string {
	level := strconv.Itoa(p.Level)
	if p.Entries {
		level = "entries"
	}
	index := fmt.Sprintf("%03d", p.Index%1000)
	for n := p.Index / 1000; n > 0; n /= 1000 {
		index = fmt.Sprintf("x%03d/%s", n%1000, index)
	}
	if p.Width != TileWidth {
		index += ".p/" + strconv.Itoa(p.Width)
	}
	return "tile/" + level + "/" + index
}

// Tile returns the hashes of a tile, one after another.
func Tile(p TilePath, size int64, r HashReader) ([]byte, error) {
	t := tlog.Tile{H: TileHeight, L: p.Level, N: p.Index, W: p.Width}
	if p.Level > 7 || p.Index*TileWidth+int64(p.Width) > size>>(p.Level*TileHeight) {
		return nil, fmt.Errorf("%w: tile %s of a log of %d leaves", ErrNoTile, p, size)
	}
	return tlog.ReadTileData(t, r)
}

// ErrNoTile says that the log is not large enough for a tile.
var ErrNoTile = errors.New("the log is not that large yet")

// AppendEntry appends a leaf to an entry bundle.
//
// "Each entry is encoded as a big-endian uint16 length followed by the entry"
// (C2SP tlog-tiles, entry bundles).
func AppendEntry(bundle, leaf []byte) []byte {
	bundle = binary.BigEndian.AppendUint16(bundle, uint16(len(leaf)))
	return append(bundle, leaf...)
}

// Entries splits an entry bundle.
func Entries(bundle []byte) (leaves [][]byte, err error) {
	for len(bundle) > 0 {
		if len(bundle) < 2 {
			return nil, io.ErrUnexpectedEOF
		}
		n := int(binary.BigEndian.Uint16(bundle))
		if len(bundle) < 2+n {
			return nil, io.ErrUnexpectedEOF
		}
		leaves = append(leaves, bundle[2:2+n])
		bundle = bundle[2+n:]
	}
	return leaves, nil
}
