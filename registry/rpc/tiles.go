package rpc

import (
	"errors"
	"net/http"

	"github.com/assay-dev/assay/registry"
	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/registry/tlog"
)

// Tiles serves the log as C2SP tlog-tiles (https://c2sp.org/tlog-tiles):
// checkpoint, tile/<L>/<N> and tile/entries/<N>, below whatever prefix it is
// mounted under. Tiles never change, so they can be kept by whoever reads them.
func Tiles(opt Options) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		actor, err := opt.AuthenticateHTTP(r)
		if err == nil && r.URL.Path == "checkpoint" {
			var note []byte
			if note, err = opt.Registry.Checkpoint(r.Context(), actor); err == nil {
				w.Header().Set("Content-Type", "text/plain; charset=utf-8")
				w.Header().Set("Cache-Control", "no-cache")
				w.Write(note)
				return
			}
		}
		if err == nil {
			p, perr := tlog.ParseTilePath(r.URL.Path)
			if perr != nil {
				http.Error(w, perr.Error(), http.StatusNotFound)
				return
			}
			var data []byte
			if data, err = opt.Registry.Tile(r.Context(), actor, p); err == nil {
				w.Header().Set("Content-Type", "application/octet-stream")
				w.Header().Set("Cache-Control", "max-age=31536000, immutable")
				w.Write(data)
				return
			}
		}
		status := http.StatusInternalServerError
		switch {
		case errors.Is(err, access.ErrUnauthenticated):
			status = http.StatusUnauthorized
		case errors.Is(err, access.ErrDenied):
			status = http.StatusForbidden
		case errors.Is(err, registry.ErrUnknown):
			status = http.StatusNotFound
		}
		message := http.StatusText(status)
		if status != http.StatusInternalServerError {
			message = err.Error()
		}
		http.Error(w, message, status)
	})
}
