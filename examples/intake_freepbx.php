#!/usr/bin/env php
<?php
/*
 * FreePBX, Issabel, any Asterisk dialplan: tells toque of a call by AGI. Where toque can log in to the manager interface, let it
 * (docs/operation.md): that sees every transfer and queue. This is for machines where it cannot. docs/intake.md explains it.
 *
 * Put it into /var/lib/asterisk/agi-bin/toque.php, executable, and into /etc/asterisk/toque.ini (mode 0640, owner asterisk):
 *
 *     url = "https://toque.example.com/intake/events"
 *     token = "toque_intake_..."
 *     spool = "/var/spool/asterisk/toque"
 *
 * In extensions_custom.conf, for calls over trunks (for others, the same two lines where your dialplan begins them):
 *
 *     [macro-dialout-trunk-predial-hook]
 *     exten => s,1,Set(CHANNEL(hangup_handler_push)=toque-ended,s,1)
 *      same => n,AGI(toque.php,initiated,${CALLERID(num)},${OUTNUM})
 *      same => n,MacroExit()
 *
 *     [toque-ended]
 *     exten => s,1,AGI(toque.php,ended)
 *      same => n,Return()
 *
 * A status that toque does not take waits in the spool; cron posts it again, and in order:
 *
 *     * * * * * asterisk /var/lib/asterisk/agi-bin/toque.php flush
 */

const WORDS = [ // DIALSTATUS
    'BUSY' => 'busy', 'NOANSWER' => 'no_answer', 'CANCEL' => 'cancelled', 'DONTCALL' => 'rejected', 'TORTURE' => 'rejected',
];

$settings = parse_ini_file(getenv('TOQUE_INI') ?: '/etc/asterisk/toque.ini', false, INI_SCANNER_RAW);

if (($argv[1] ?? '') === 'flush') {
    exit(flush_spool($settings) ? 0 : 1);
}
$channel = read_channel();
keep($settings, items_of($argv[1] ?? 'ended', $channel, $argv));
flush_spool($settings);

/** What Asterisk says of the channel before the first command: agi_uniqueid and others, up to an empty line. */
function read_channel(): array
{
    $channel = [];
    while (($line = fgets(STDIN)) !== false && trim($line) !== '') {
        [$name, $value] = explode(':', $line, 2) + [1 => ''];
        $channel[$name] = trim($value);
    }
    return $channel;
}

/** A variable or function of the dialplan; '' if it is not set. */
function variable(string $name): string
{
    echo "GET FULL VARIABLE \${{$name}}\n";
    flush();
    return preg_match('/^200 result=1 \((.*)\)$/', trim((string) fgets(STDIN)), $found) ? $found[1] : '';
}

/** The call as it stands: linkedid is the name that all its channels share. */
function items_of(string $status, array $channel, array $argv): array
{
    $now = microtime(true);
    $item = [
        'call' => variable('CHANNEL(linkedid)') ?: ($channel['agi_uniqueid'] ?? ''),
        'status' => $status,
        'at' => (int) round($now * 1000),
        'from' => $argv[2] ?? $channel['agi_callerid'] ?? '',
        'to' => $argv[3] ?? $channel['agi_dnid'] ?? '',
    ];
    if (($channel['agi_accountcode'] ?? '') !== '') {
        $item['account'] = $channel['agi_accountcode'];
    }
    if ($status !== 'ended') {
        return [$item];
    }
    unset($item['from'], $item['to']); // the first item has said it
    $dialled = variable('DIALSTATUS');
    $cause = variable('HANGUPCAUSE');
    if ((int) $cause > 0) {
        $item['cause'] = ['q850' => (int) $cause];
    }
    if ($dialled === 'ANSWER') { // ANSWEREDTIME: whole seconds since the answer, at the hanging up
        $answered = ['status' => 'answered', 'at' => $item['at'] - 1000 * (int) variable('ANSWEREDTIME')];
        return [array_diff_key(array_merge($item, $answered), ['cause' => 0]), array_merge($item, ['status' => 'hung_up'])];
    }
    $item['status'] = $dialled === '' ? 'cancelled' : (WORDS[$dialled] ?? 'ended'); // for others the cause says it
    return [$item];
}

/** Write the items down before anything is posted: a file each, whose name is the order. */
function keep(array $settings, array $items): void
{
    @mkdir($settings['spool'], 0700, true);
    foreach ($items as $number => $item) {
        $name = sprintf('%s/%.6f-%d-%d', $settings['spool'], microtime(true), getmypid(), $number);
        $line = json_encode($item, JSON_UNESCAPED_UNICODE | JSON_INVALID_UTF8_SUBSTITUTE);
        file_put_contents("$name.tmp", "$line\n");
        rename("$name.tmp", "$name.json");
    }
}

/** Post what waits, one process at a time. False when toque does not take it now. */
function flush_spool(array $settings): bool
{
    $lock = fopen($settings['spool'] . '/lock', 'c');
    if (!flock($lock, LOCK_EX | LOCK_NB)) {
        return true; // the other one posts ours as well, or the next call does
    }
    while ($files = array_slice(glob($settings['spool'] . '/*.json'), 0, 1000)) {
        if (!post($settings, implode('', array_map('file_get_contents', $files)))) {
            return false;
        }
        array_map('unlink', $files);
    }
    return true;
}

/** Whether toque has taken it, or never will: what it refuses is logged and not posted again. */
function post(array $settings, string $lines): bool
{
    $request = ['http' => [
        'method' => 'POST',
        'header' => "Authorization: Bearer {$settings['token']}\r\nContent-Type: application/x-ndjson",
        'content' => $lines,
        'timeout' => 5,
        'ignore_errors' => true,
    ]];
    $answer = @file_get_contents($settings['url'] . '?answer=short', false, stream_context_create($request));
    $status = (int) explode(' ', $http_response_header[0] ?? '- 0')[1];
    $told = json_decode((string) $answer, true);
    foreach ($told['items'] ?? [] as $item) {
        error_log("toque refuses call {$item['call']}: {$item['reason']}");
    }
    return in_array($status, [200, 400, 422], true);
}
