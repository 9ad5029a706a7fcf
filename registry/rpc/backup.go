package rpc

import (
	"bufio"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
)

// maxHave bounds the list of what a client has already: 3.5 million digests.
const maxHave = 256 << 20

// Backup answers POST with a backup of the registry, as a tar archive. The
// body may list digests, one a line, of blobs that the client has already and
// that are left out. An archive without its last file is not complete.
func Backup(opt Options) http.Handler {
	s := newServer(opt)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		actor, ok := s.enter(w, r)
		if !ok {
			return
		}
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			writeStatus(w, http.StatusMethodNotAllowed, statusOf(codes.Unimplemented, "NO_SUCH_METHOD", "a backup is asked for with POST"))
			return
		}
		have := map[digest.Digest]bool{}
		lines := bufio.NewScanner(http.MaxBytesReader(w, r.Body, maxHave))
		for lines.Scan() {
			d := digest.Digest(lines.Text())
			if err := d.Validate(); err != nil {
				s.fail(w, r, fmt.Errorf("%w: %.100q is no digest", errRequest, d))
				return
			}
			have[d] = true
		}
		if err := lines.Err(); err != nil {
			s.fail(w, r, fmt.Errorf("%w: %w", errRequest, err))
			return
		}
		out := &archive{ResponseWriter: w}
		tail, err := s.Registry.Backup(r.Context(), actor, out, func(d digest.Digest) bool { return have[d] })
		switch {
		case err == nil:
			s.Log.Info("backup", "request", actor.RequestID, "actor", actor.ID, "rows", tail.Rows, "blobs", tail.Sent, "bytes", out.sent)
		case out.sent == 0:
			s.fail(w, r, err)
		default:
			s.Log.Log(r.Context(), slog.LevelError, "a backup broke off", "request", actor.RequestID, "actor", actor.ID, "bytes", out.sent, "error", err)
			// The answer has begun: only breaking it off says that it is not whole.
			panic(http.ErrAbortHandler)
		}
	})
}

// archive is the answer, and counts what is sent of it.
type archive struct {
	http.ResponseWriter
	sent int64
}

func (a *archive) Write(p []byte) (int, error) {
	if a.sent == 0 {
		a.Header().Set("Content-Type", "application/x-tar")
	}
	n, err := a.ResponseWriter.Write(p)
	a.sent += int64(n)
	return n, err
}
