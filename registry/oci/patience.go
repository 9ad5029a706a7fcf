package oci

import (
	"io"
	"net/http"
	"time"
)

// Patience gives clients time as long as they make progress: every read of a
// body and every write of an answer moves a deadline stall ahead. A request
// may take a day; a client that stands still is sent away after stall.
//
// It is for all handlers of a server: a deadline belongs to the connection and
// outlives the request that set it, so each request must begin by moving it.
func Patience(next http.Handler, stall time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := &patient{ResponseWriter: w, control: http.NewResponseController(w), stall: stall}
		p.renew()
		if r.Body != nil && r.Body != http.NoBody {
			r.Body = &patientBody{r.Body, p}
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
}

func (w *patient) renew() { w.control.SetWriteDeadline(time.Now().Add(w.stall)) }

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

// sendPiece is how much is handed to sendfile under one deadline: what the
// slowest client that is waited for takes in that time, 70 kB/s at a minute.
const sendPiece = 4 << 20

// ReadFrom implements io.ReaderFrom, in pieces: a wrapper that hid it would
// cost sendfile.
func (w *patient) ReadFrom(src io.Reader) (n int64, err error) {
	rf, ok := w.ResponseWriter.(io.ReaderFrom)
	// http.ServeContent gives an *io.LimitedReader over the file, and net/http
	// looks for exactly that.
	limited, isLimited := src.(*io.LimitedReader)
	if !ok || !isLimited {
		return io.Copy(struct{ io.Writer }{w}, src)
	}
	for limited.N > 0 {
		piece := min(limited.N, sendPiece)
		w.renew()
		m, err := rf.ReadFrom(&io.LimitedReader{R: limited.R, N: piece})
		n += m
		limited.N -= m
		if err != nil || m < piece {
			return n, err
		}
	}
	return n, nil
}

type patientBody struct {
	io.ReadCloser
	w *patient
}

func (b *patientBody) Read(p []byte) (int, error) {
	b.w.control.SetReadDeadline(time.Now().Add(b.w.stall))
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		// The body is over. net/http goes on reading, to learn whether the
		// client goes away while the answer is made, and that may take longer.
		b.w.control.SetReadDeadline(time.Time{})
	}
	return n, err
}
