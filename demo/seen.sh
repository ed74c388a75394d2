# What the demonstrations have in common; they source it.
faults=0

step() { printf '\n\033[1m%s\033[0m\n' "$*"; }

# check WHAT COMMAND...: COMMAND has to succeed, or the demonstration fails.
check() {
	what=$1
	shift
	if "$@" >/dev/null 2>&1; then
		echo "  seen: $what"
	else
		echo "  NOT SEEN: $what"
		faults=$((faults + 1))
	fi
}

absent() { ! grep -rqF -e "$1" "$2"; }

random() { od -An -N12 -tx1 /dev/urandom | tr -d ' \n'; }

# serve DIR: starts imprint with a store of its own below DIR, and waits for it.
serve() {
	imprint serve --data "$1/data" --run "$1/run" --operator "" >"$1/serve.log" 2>&1 </dev/null &
	server=$!
	for _ in $(seq 100); do
		imprint get >/dev/null 2>&1 && return
		kill -0 $server 2>/dev/null || break
		sleep 0.1
	done
	cat "$1/serve.log"
	exit 1
}

# verdict: ends the demonstration unless every claim was seen.
verdict() {
	if [ "$faults" -gt 0 ]; then
		step "$faults of the claims were NOT seen"
		exit 1
	fi
	step "All of it was seen."
}
