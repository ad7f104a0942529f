%% The echo server in Erlang: a process for each connection, frames by {packet, 2}.
%%
%% erl -s frame_echo start PORT
-module(frame_echo).
-export([start/1]).

start([Port]) ->
    Options = [binary, {packet, 2}, {active, false}, {nodelay, true}, {reuseaddr, true},
               {backlog, 4096}, {ip, {127, 0, 0, 1}}],
    {ok, Listener} = gen_tcp:listen(list_to_integer(atom_to_list(Port)), Options),
    accept(Listener).

accept(Listener) ->
    {ok, Socket} = gen_tcp:accept(Listener),
    Process = spawn(fun() -> receive go -> begin_echo(Socket) end end),
    ok = gen_tcp:controlling_process(Socket, Process),
    Process ! go,
    accept(Listener).

begin_echo(Socket) ->
    case inet:setopts(Socket, [{active, 64}]) of
        ok -> echo(Socket);
        {error, _} -> gen_tcp:close(Socket)
    end.

echo(Socket) ->
    receive
        {tcp, Socket, Message} ->
            case gen_tcp:send(Socket, Message) of
                ok -> echo(Socket);
                {error, _} -> gen_tcp:close(Socket)
            end;
        {tcp_passive, Socket} -> begin_echo(Socket);
        {tcp_closed, Socket} -> ok;
        {tcp_error, Socket, _} -> ok
    end.
