package oci

import (
	"errors"
	"io"
	"net/http"
	"os"
	"time"
)

// Patience gives clients time as long as they make progress: every read of a
// body and every write of an answer moves a deadline ahead, to stall from then
// or an eighth less. A request may take a day; a client that stands still is
// sent away.
//
// It is for all handlers of a server: a deadline belongs to the connection and
// outlives the request that set it, so each request must begin by moving it.
func Patience(next http.Handler, stall time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := &patient{ResponseWriter: w, control: http.NewResponseController(w), stall: stall, plain: r.TLS == nil}
		p.renew()
		if r.Body != nil && r.Body != http.NoBody {
			r.Body = &patientBody{ReadCloser: r.Body, w: p}
		}
		next.ServeHTTP(p, r)
		// net/http still has to send what it holds in its buffer.
		p.renew()
	})
}

type patient struct {
	http.ResponseWriter
	control *http.ResponseController
	stall   time.Duration
	renewed time.Time // when the deadline was moved last
	plain   bool      // no TLS: the kernel can send files
}

// renew moves the deadline. That is no cheap thing to do for every few KiB.
func (w *patient) renew() {
	now := time.Now()
	if now.Sub(w.renewed) < w.stall/8 {
		return
	}
	w.renewed = now
	w.control.SetWriteDeadline(now.Add(w.stall))
}

// Unwrap is for http.ResponseController.
func (w *patient) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Flush implements http.Flusher.
func (w *patient) Flush() {
	w.renew()
	w.control.Flush()
}

func (w *patient) Write(p []byte) (int, error) {
	w.renew()
	return w.ResponseWriter.Write(p)
}

// sendPiece is what a client has to take before the deadline: 70 kB/s, if it is
// a minute.
const sendPiece = 4 << 20

// ReadFrom implements io.ReaderFrom: a wrapper that hid it would cost sendfile.
// What the kernel sends itself it is given as a whole, since each piece that
// it is cut into costs. When the deadline comes in the middle, what was sent
// until then is known, and it goes on from there if that is enough.
//
// Anything else is written, piece by piece, because then a deadline leaves open
// what was sent. (The ReadFrom of net/http would send the head of an answer in a
// packet of its own: a manifest took two, and woke its client twice.)
//
// What is known is what the kernel took, and it takes megabytes ahead of the
// client, and then nothing until much of its buffer is free. So what was more
// than enough counts for the time after that, up to one piece.
func (w *patient) ReadFrom(src io.Reader) (n int64, err error) {
	rf, ok := w.ResponseWriter.(io.ReaderFrom)
	// http.ServeContent gives an *io.LimitedReader over the file, and net/http
	// looks for exactly that.
	limited, isLimited := src.(*io.LimitedReader)
	if !ok || !isLimited {
		return io.Copy(struct{ io.Writer }{w}, src)
	}
	_, whole := limited.R.(*os.File)
	whole = whole && w.plain
	for ahead := int64(0); limited.N > 0; {
		piece := limited.N
		if !whole {
			piece = min(piece, sendPiece)
		}
		w.renew()
		var m int64
		if part := (&io.LimitedReader{R: limited.R, N: piece}); whole {
			m, err = rf.ReadFrom(part)
		} else {
			m, err = io.Copy(struct{ io.Writer }{w.ResponseWriter}, part)
		}
		n += m
		limited.N -= m
		if whole && errors.Is(err, os.ErrDeadlineExceeded) {
			if ahead = min(ahead+m-sendPiece, sendPiece); ahead >= 0 {
				continue
			}
		}
		if err != nil || m < piece {
			return n, err
		}
	}
	return n, nil
}

type patientBody struct {
	io.ReadCloser
	w       *patient
	renewed time.Time // when the deadline was moved last
}

func (b *patientBody) Read(p []byte) (int, error) {
	if now := time.Now(); now.Sub(b.renewed) >= b.w.stall/8 {
		b.renewed = now
		b.w.control.SetReadDeadline(now.Add(b.w.stall))
	}
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		// The body is over. net/http goes on reading, to learn whether the
		// client goes away while the answer is made, and that may take longer.
		b.w.control.SetReadDeadline(time.Time{})
	}
	return n, err
}
