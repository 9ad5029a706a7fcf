package oci

import (
	"net"
	"net/http"
	"slices"
	"strings"
)

// GuardOptions configure Guard.
type GuardOptions struct {
	// Hosts are names by which clients may call the server besides loopback
	// ones.
	Hosts []string

	// AnyHost lets clients call the server by any name.
	AnyHost bool
}

// Guard keeps web pages of others from using a browser on this machine to
// reach a server that trusts whoever is on it: requests from other origins
// that change something are refused, and so are all under a host name that is
// not the server's (DNS rebinding).
func Guard(next http.Handler, opt GuardOptions) http.Handler {
	protection := http.NewCrossOriginProtection()
	return protection.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !opt.AnyHost && !allowedHost(r.Host, opt.Hosts) {
			http.Error(w, "this server is not called "+strings.ToValidUTF8(r.Host, "?")+"; start it with --host to allow the name", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	}))
}

func allowedHost(hostport string, more []string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	if strings.EqualFold(host, "localhost") || slices.Contains(more, host) {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
