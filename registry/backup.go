package registry

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/store"
)

// A backup is a tar archive of one state of the registry, in terms of the two
// contracts of package store and of no engine, so that it can be restored into
// others:
//
//	assay-backup.json     what it is a backup of, with the log's checkpoint
//	identity/NAME         the server's own keys
//	content/NNNNNN        names of the files below that hold bytes, one a line
//	blobs/ALG/HEX         the bytes of a blob
//	manifests/ALG/HEX     the bytes of a manifest that is too large for a row
//	rows/NNNNNN           rows in order: lengths (uvarint) and bytes of key and value
//	end.json              how many there were, and a digest of the rows
//
// Without its last file it is not complete.
const (
	backupBegin = "assay-backup.json"
	backupEnd   = "end.json"

	backupFormat = 1

	// backupRows is about how many bytes of rows go into one file.
	backupRows = 4 << 20
)

// A BackupHead is the first file of a backup.
type BackupHead struct {
	Format     int       `json:"format"`
	Schema     int       `json:"schema"`
	Created    time.Time `json:"created"`
	Checkpoint string    `json:"checkpoint"` // of the log, signed
}

// A BackupTail is the last file of a backup.
type BackupTail struct {
	Rows       int           `json:"rows"`
	RowsDigest digest.Digest `json:"rowsDigest"`
	Blobs      int           `json:"blobs"`     // that the rows name
	BlobBytes  int64         `json:"blobBytes"` // of those
	Sent       int           `json:"sent"`      // that are in the archive
}

// notInBackup is what belongs to a running server.
var notInBackup = map[string]bool{"schema": true, "upload": true, "uploadstates": true}

// Backup writes a backup of the state at the moment of the call, while the
// registry goes on working. Blobs that the caller has already are left out.
// An error leaves an archive without its last file.
func (r *Registry) Backup(ctx context.Context, actor access.Actor, w io.Writer, have func(digest.Digest) bool) (BackupTail, error) {
	if err := actor.Authorize(access.Operate, ""); err != nil {
		return BackupTail{}, err
	}
	// Bytes that the rows of this state name stay until the end.
	defer r.pin()()
	t := tar.NewWriter(w)
	b := &backup{r: r, ctx: ctx, t: t, have: have, now: r.clock().UTC()}
	err := r.view(ctx, func(rd store.Reader) error {
		for _, step := range []func(store.Reader) error{b.head, b.list, b.bytes, b.rows, b.end} {
			if err := step(rd); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = t.Close()
	}
	return b.tail, err
}

type backup struct {
	r    *Registry
	ctx  context.Context
	t    *tar.Writer
	have func(digest.Digest) bool
	now  time.Time
	tail BackupTail
}

func (b *backup) file(name string, data []byte) error {
	if err := b.t.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(data)), ModTime: b.now}); err != nil {
		return err
	}
	_, err := b.t.Write(data)
	return err
}

func (b *backup) json(name string, v any) error {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return b.file(name, append(raw, '\n'))
}

func (b *backup) head(rd store.Reader) error {
	state, err := tree(rd)
	if err != nil {
		return err
	}
	note, err := b.r.identity.Log.Checkpoint(state)
	if err != nil {
		return err
	}
	if err := b.json(backupBegin, BackupHead{Format: backupFormat, Schema: schemaVersion, Created: b.now, Checkpoint: string(note)}); err != nil {
		return err
	}
	files, err := b.r.identity.files()
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := b.file("identity/"+f.name, f.data); err != nil {
			return err
		}
	}
	return nil
}

// content is where the bytes are that the rows name.
func (b *backup) content(rd store.Reader, take func(name string, d digest.Digest, k store.Key, size int64) error) error {
	for row, err := range rd.Scan(under("blob")) {
		if err != nil {
			return err
		}
		var blob blobRow
		if err := decode(row, &blob); err != nil {
			return err
		}
		d := digest.Digest(parts(row.Key)[0])
		if err := take(backupName("blobs", d), d, blob.Key, blob.Size); err != nil {
			return err
		}
	}
	for row, err := range rd.Scan(under("manifest")) {
		if err != nil {
			return err
		}
		var m manifestRow
		if err := decode(row, &m); err != nil {
			return err
		}
		if m.Blob == "" {
			continue
		}
		d := digest.Digest(parts(row.Key)[0])
		if err := take(backupName("manifests", d), d, m.Blob, m.Size); err != nil {
			return err
		}
	}
	return nil
}

func backupName(folder string, d digest.Digest) string {
	return folder + "/" + strings.Replace(string(d), ":", "/", 1)
}

// list writes what bytes belong to this backup, for whoever keeps them once for
// several backups.
func (b *backup) list(rd store.Reader) error {
	files := pieces{b: b, folder: "content"}
	if err := b.content(rd, func(name string, _ digest.Digest, _ store.Key, size int64) error {
		b.tail.Blobs++
		b.tail.BlobBytes += size
		files.buf.WriteString(name + "\n")
		return files.full()
	}); err != nil {
		return err
	}
	return files.flush()
}

// bytes writes what the caller lacks. It is not compared with its digests here
// but when it is restored, which is when it counts.
func (b *backup) bytes(rd store.Reader) error {
	buf := make([]byte, uploadBuffer)
	return b.content(rd, func(name string, d digest.Digest, k store.Key, size int64) error {
		if b.have(d) {
			return nil
		}
		blob, err := b.r.blobs.Open(b.ctx, k)
		if errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("the bytes of %s are gone: run 'assay gc' to set it aside, and back up again", d)
		}
		if err != nil {
			return err
		}
		defer blob.Close()
		if blob.Size() != size {
			return fmt.Errorf("%s has %d bytes, and not %d: run 'assay scrub' to set it aside, and back up again", d, blob.Size(), size)
		}
		b.tail.Sent++
		if err := b.t.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: size, ModTime: b.now}); err != nil {
			return err
		}
		_, err = io.CopyBuffer(struct{ io.Writer }{b.t}, struct{ io.Reader }{blob}, buf)
		return err
	})
}

// pieces are numbered files of about backupRows bytes.
type pieces struct {
	b      *backup
	folder string
	n      int
	buf    bytes.Buffer
	sum    hash.Hash // of all of them; may be nil
}

func (p *pieces) full() error {
	if p.buf.Len() < backupRows {
		return nil
	}
	return p.flush()
}

func (p *pieces) flush() error {
	if p.buf.Len() == 0 {
		return nil
	}
	p.n++
	if p.sum != nil {
		p.sum.Write(p.buf.Bytes())
	}
	err := p.b.file(fmt.Sprintf("%s/%06d", p.folder, p.n), p.buf.Bytes())
	p.buf.Reset()
	return err
}

func (b *backup) rows(rd store.Reader) error {
	files := pieces{b: b, folder: "rows", sum: sha256.New()}
	for row, err := range rd.Scan(store.Range{}) {
		if err != nil {
			return err
		}
		if notInBackup[familyOf(row.Key)] {
			continue
		}
		b.tail.Rows++
		for _, part := range [][]byte{row.Key, row.Value} {
			files.buf.Write(binary.AppendUvarint(nil, uint64(len(part))))
			files.buf.Write(part)
		}
		if err := files.full(); err != nil {
			return err
		}
	}
	err := files.flush()
	b.tail.RowsDigest = digest.NewDigest(digest.SHA256, files.sum)
	return err
}

func (b *backup) end(store.Reader) error { return b.json(backupEnd, b.tail) }

// schemaRestoring stands in the schema row while a restore runs, so that what
// was left half-done is not taken for a registry.
const schemaRestoring = -1

// RestoreOptions say where a backup goes. All are needed.
type RestoreOptions struct {
	DB       store.DB    // empty
	Blobs    store.Blobs // empty
	Identity string      // folder that is not there yet or empty
}

// Restore writes a backup into an empty store. Every blob is compared with its
// digest on the way. When it returns nil all is durable and can be opened.
func Restore(ctx context.Context, archive io.Reader, opt RestoreOptions) (BackupHead, BackupTail, error) {
	r := &restoring{ctx: ctx, opt: opt, large: map[digest.Digest]store.Key{}, sum: sha256.New()}
	err := r.begin()
	for t := tar.NewReader(archive); err == nil; {
		var h *tar.Header
		if h, err = t.Next(); err == io.EOF {
			err = errors.New("the backup is not complete: its end is missing")
		} else if err != nil {
			err = fmt.Errorf("reading the backup: %w", err)
		}
		if err != nil {
			break
		}
		folder, name, _ := strings.Cut(h.Name, "/")
		switch {
		case h.Typeflag != tar.TypeReg:
			err = fmt.Errorf("the backup holds %q, which is no file", h.Name)
		case h.Name == backupBegin:
			err = r.head(t)
		case r.from.Format == 0:
			err = fmt.Errorf("this is no backup by assay: it begins with %q", h.Name)
		case h.Name == backupEnd:
			if err = r.end(t); err == nil {
				return r.from, r.tail, nil
			}
		case folder == "identity":
			err = r.identity(name, t)
		case folder == "content": // what follows is counted
		case folder == "blobs" || folder == "manifests":
			err = r.blob(folder, digest.Digest(strings.Replace(name, "/", ":", 1)), h.Size, t)
		case folder == "rows":
			err = r.rows(t)
		default:
			err = fmt.Errorf("the backup holds %q, which is unknown to this version", h.Name)
		}
	}
	return r.from, r.tail, err
}

type restoring struct {
	ctx   context.Context
	opt   RestoreOptions
	from  BackupHead
	tail  BackupTail
	large map[digest.Digest]store.Key // manifests that are not in their rows
	sum   hash.Hash
	count struct{ rows, blobs int }
}

func (r *restoring) set(rows ...store.Row) error {
	return r.opt.DB.Update(r.ctx, func(store.Reader) (b store.Batch, err error) {
		for _, row := range rows {
			b.Set(row.Key, row.Value)
		}
		return b, nil
	})
}

func (r *restoring) begin() error {
	err := r.opt.DB.View(r.ctx, func(rd store.Reader) error {
		for range rd.Scan(store.Range{}) {
			return errors.New("there is data already: restore into an empty folder")
		}
		return nil
	})
	if err != nil {
		return err
	}
	return r.set(store.Row{Key: key("schema"), Value: encode(schemaRestoring)})
}

func (r *restoring) head(from io.Reader) error {
	if err := json.NewDecoder(io.LimitReader(from, 1<<20)).Decode(&r.from); err != nil {
		return fmt.Errorf("the backup's head: %w", err)
	}
	if r.from.Format != backupFormat || r.from.Schema != schemaVersion {
		return fmt.Errorf("the backup is of format %d and schema %d, and this program knows %d and %d: restore it with the version of assay that wrote it",
			r.from.Format, r.from.Schema, backupFormat, schemaVersion)
	}
	return nil
}

func (r *restoring) identity(name string, from io.Reader) error {
	if name == "" || strings.ContainsAny(name, `/\`) || strings.HasPrefix(name, ".") {
		return fmt.Errorf("the backup holds a key called %q", name)
	}
	raw, err := io.ReadAll(io.LimitReader(from, 1<<20))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(r.opt.Identity, 0o700); err != nil {
		return err
	}
	return writeDurably(filepath.Join(r.opt.Identity, name), raw)
}

func (r *restoring) blob(folder string, d digest.Digest, size int64, from io.Reader) error {
	if err := checkDigest(d); err != nil {
		return fmt.Errorf("the backup holds a blob with no name: %w", err)
	}
	w, err := r.opt.Blobs.Create(r.ctx, size)
	if err != nil {
		return err
	}
	defer w.Close()
	digester := d.Algorithm().Digester()
	if _, err := io.CopyBuffer(io.MultiWriter(w, digester.Hash()), struct{ io.Reader }{from}, make([]byte, uploadBuffer)); err != nil {
		return fmt.Errorf("restoring %s: %w", d, err)
	}
	if got := digester.Digest(); got != d {
		return fmt.Errorf("the backup is damaged: what it calls %s is %s", d, got)
	}
	if err := w.Commit(); err != nil {
		return err
	}
	r.count.blobs++
	if folder == "manifests" {
		r.large[d] = w.Key()
		return nil
	}
	return r.set(store.Row{Key: key("blob", string(d)), Value: encode(blobRow{Key: w.Key(), Size: size})})
}

func (r *restoring) rows(from io.Reader) error {
	in := bufio.NewReader(io.TeeReader(from, r.sum))
	part := func() ([]byte, error) {
		n, err := binary.ReadUvarint(in)
		if err != nil {
			return nil, err
		}
		if n > 64<<20 {
			return nil, errors.New("a row is too long")
		}
		p := make([]byte, n)
		_, err = io.ReadFull(in, p)
		return p, err
	}
	limits := r.opt.DB.Limits()
	var pending []store.Row
	weight := 0
	flush := func() error {
		err := r.set(pending...)
		pending, weight = nil, 0
		return err
	}
	for {
		k, err := part()
		if err == io.EOF {
			return flush()
		}
		var v []byte
		if err == nil {
			v, err = part()
		}
		if err == nil {
			v, err = r.row(k, v)
		}
		if err != nil {
			return fmt.Errorf("rows of the backup: %w", err)
		}
		r.count.rows++
		if v == nil {
			continue
		}
		if weight += len(k) + len(v); len(pending) > 0 && (weight > limits.BatchBytes || len(pending) == limits.BatchRows) {
			if err := flush(); err != nil {
				return err
			}
			weight = len(k) + len(v)
		}
		pending = append(pending, store.Row{Key: k, Value: v})
	}
}

// row returns the value a row has here, or nil if it was written before.
func (r *restoring) row(k, v []byte) ([]byte, error) {
	switch familyOf(k) {
	case "blob":
		return nil, r.opt.DB.View(r.ctx, func(rd store.Reader) error {
			if ok, err := exists(rd, k); err != nil || !ok {
				return orElse(err, fmt.Errorf("the bytes of blob %s are missing in the backup", parts(k)[0]))
			}
			return nil
		})
	case "manifest":
		var m manifestRow
		if err := json.Unmarshal(v, &m); err != nil {
			return nil, err
		}
		if m.Blob == "" {
			return v, nil
		}
		d := digest.Digest(parts(k)[0])
		if m.Blob = r.large[d]; m.Blob == "" {
			return nil, fmt.Errorf("the bytes of manifest %s are missing in the backup", d)
		}
		return encode(m), nil
	case "quarantined":
		var q quarantinedRow
		if err := json.Unmarshal(v, &q); err != nil {
			return nil, err
		}
		q.Key = "" // damaged bytes are not carried along
		return encode(q), nil
	}
	if v == nil {
		v = []byte{}
	}
	return v, nil
}

func (r *restoring) end(from io.Reader) error {
	if err := json.NewDecoder(io.LimitReader(from, 1<<20)).Decode(&r.tail); err != nil {
		return fmt.Errorf("the backup's end: %w", err)
	}
	sum := digest.Digest("sha256:" + hex.EncodeToString(r.sum.Sum(nil)))
	switch {
	case r.count.rows != r.tail.Rows || sum != r.tail.RowsDigest:
		return fmt.Errorf("the backup is damaged: %d rows with digest %s, and %d with %s were written", r.count.rows, sum, r.tail.Rows, r.tail.RowsDigest)
	case r.count.blobs != r.tail.Blobs:
		return fmt.Errorf("the backup is damaged: %d blobs, and %d were written", r.count.blobs, r.tail.Blobs)
	}
	id, err := LoadIdentity(r.opt.Identity)
	if err != nil {
		return err
	}
	var note []byte
	if err := r.opt.DB.View(r.ctx, func(rd store.Reader) error {
		state, err := tree(rd)
		if err == nil {
			note, err = id.Log.Checkpoint(state)
		}
		return err
	}); err != nil {
		return fmt.Errorf("the backup is damaged: its log: %w", err)
	}
	if string(note) != r.from.Checkpoint { // Ed25519 signatures are the same each time
		return errors.New("the backup is damaged: its log, or the key it is signed with, is not the one its head names")
	}
	// From here on it is a registry.
	return r.set(store.Row{Key: key("schema"), Value: encode(schemaVersion)})
}
