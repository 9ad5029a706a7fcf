package rpc

import (
	"net/http"

	"google.golang.org/grpc/codes"

	"github.com/assay-dev/assay/registry/tlog"
)

// Tiles serves the log as C2SP tlog-tiles (https://c2sp.org/tlog-tiles):
// checkpoint, tile/<L>/<N>[.p/<W>] and tile/entries/<N>[.p/<W>], below whatever
// prefix it is mounted under and stripped of. Tiles never change, so they can
// be kept by whoever reads them.
func Tiles(opt Options) http.Handler {
	s := newServer(opt)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		actor, ok := s.enter(w, r)
		if !ok {
			return
		}
		h := w.Header()
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			h.Set("Allow", "GET, HEAD")
			writeStatus(w, http.StatusMethodNotAllowed, statusOf(codes.Unimplemented, "NO_SUCH_METHOD", "the log is only read"))
			return
		}
		if r.URL.Path == "checkpoint" {
			note, err := s.Registry.Checkpoint(r.Context(), actor)
			if err != nil {
				s.fail(w, r, err)
				return
			}
			h.Set("Content-Type", "text/plain; charset=utf-8")
			h.Set("Cache-Control", "no-cache")
			w.Write(note)
			return
		}
		p, err := tlog.ParseTilePath(r.URL.Path)
		if err != nil {
			writeStatus(w, http.StatusNotFound, statusOf(codes.NotFound, "NO_SUCH_METHOD", err.Error()))
			return
		}
		data, err := s.Registry.Tile(r.Context(), actor, p)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		h.Set("Content-Type", "application/octet-stream")
		// Private: who may read the log is decided here, and not by a cache on
		// the way.
		h.Set("Cache-Control", "private, max-age=31536000, immutable")
		w.Write(data)
	})
}
