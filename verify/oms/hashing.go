package oms

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"regexp"
	"strconv"

	"golang.org/x/crypto/blake2b"
	"lukechampine.com/blake3"

	"github.com/assay-dev/assay/verify"
)

// A Hashing is how a signature hashed the files of a model.
type Hashing struct {
	Hash  string // "sha256", "blake2b" (of 512 bits) or "blake3"
	Shard int64  // the size of a piece, in bytes; 0 for whole files
}

// WholeFiles is the one whose digests a registry has.
var WholeFiles = Hashing{Hash: "sha256"}

func (h Hashing) String() string {
	if h.Shard > 0 {
		return fmt.Sprintf("pieces of files of %d bytes by %s", h.Shard, h.Hash)
	}
	return "whole files by " + h.Hash
}

// hashes are those of the specification.
var hashes = map[string]func() hash.Hash{
	"sha256": sha256.New,
	"blake2b": func() hash.Hash {
		h, err := blake2b.New512(nil)
		if err != nil {
			panic(err) // without a key it cannot fail
		}
		return h
	},
	"blake3": func() hash.Hash { return blake3.New(32, nil) },
}

func hashingOf(method, hashType string, shard json.Number) (Hashing, error) {
	h := Hashing{Hash: hashType}
	if hashes[hashType] == nil {
		return h, fail(CodeUnsupported, "sign with sha256, blake2b or blake3", "it has %q digests", hashType)
	}
	switch method {
	case "files":
		// "Required when method is 'shards', must be absent when method is 'files'"
		// (model signing v1.0, predicate schema, shard_size).
		if shard != "" {
			return h, fail(verify.CodeStatement, signAgain, "it signs whole files, and has a shard_size")
		}
	case "shards":
		// The reference tool writes 8 as 8.0.
		size, err := shard.Float64()
		if err != nil || size < 1 || size > 1<<53 || size != float64(int64(size)) {
			return h, fail(verify.CodeStatement, signAgain, "its shard_size is %q", shard)
		}
		h.Shard = int64(size)
	default:
		return h, fail(CodeUnsupported, "sign files, or shards of them", "it signs %q of files", method)
	}
	return h, nil
}

// is reports whether a resource's algorithm is this: the hash, or, as the
// reference tool writes it of pieces, the hash and their size.
func (h Hashing) is(algorithm string) bool {
	return algorithm == h.Hash || h.Shard > 0 && algorithm == fmt.Sprintf("%s-sharded-%d", h.Hash, h.Shard)
}

func (h Hashing) size() int { return hashes[h.Hash]().Size() }

// pieceRE: "'path:start:end' where start is the inclusive byte offset and end
// is the exclusive byte offset" (model signing v1.0, predicate schema, name).
// A path may have colons of its own.
var pieceRE = regexp.MustCompile(`(?s)^(.+):(0|[1-9][0-9]{0,17}):([1-9][0-9]{0,17})$`)

// path is the file that a name is of; ok is false if it names no piece that
// there can be.
func (h Hashing) path(name string) (path string, ok bool) {
	if h.Shard == 0 {
		return name, true
	}
	m := pieceRE.FindStringSubmatch(name)
	if m == nil {
		return name, false
	}
	start, err := strconv.ParseInt(m[2], 10, 64)
	end, err2 := strconv.ParseInt(m[3], 10, 64)
	return m[1], err == nil && err2 == nil && start%h.Shard == 0 && start < end && end-start <= h.Shard
}

// sum hashes a file: one digest, or one of each piece, and none if there is
// nothing in it. room is how many there may be.
func (h Hashing) sum(name string, r io.Reader, room int) (list []File, err error) {
	if h.Shard == 0 {
		hash := hashes[h.Hash]()
		_, err := io.Copy(hash, r)
		return []File{{name, hex.EncodeToString(hash.Sum(nil))}}, err
	}
	for start := int64(0); ; start += h.Shard {
		hash := hashes[h.Hash]()
		n, err := io.CopyN(hash, r, h.Shard)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if n > 0 {
			if len(list) >= room {
				return nil, fail(verify.CodeTooLarge, "sign larger pieces", "the model has more than %d pieces of %d bytes", maxResources, h.Shard)
			}
			list = append(list, File{fmt.Sprintf("%s:%d:%d", name, start, start+n), hex.EncodeToString(hash.Sum(nil))})
		}
		if err != nil || n < h.Shard {
			return list, nil
		}
	}
}
